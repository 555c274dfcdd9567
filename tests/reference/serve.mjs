// serve.mjs: runs the reference server with the settings of its environment on a free port of this machine, until it is
// told to stop.
import { Server, createServer } from 'node:net'
import { PDS } from '@atproto/pds'

// Nobody but the tests reaches it.
const { listen } = Server.prototype
Server.prototype.listen = function (port, ...more) {
  return listen.call(this, port, '127.0.0.1', ...more)
}

// Its public URL has the port in it, so it cannot choose one itself.
process.env.PDS_PORT = await new Promise((resolve, reject) => {
  const probe = createServer().on('error', reject)
  probe.listen(0, () => {
    const { port } = probe.address()
    probe.close(() => resolve(String(port)))
  })
})
await PDS.run({ onStarted: () => console.log(`listens on http://localhost:${process.env.PDS_PORT}`) })
