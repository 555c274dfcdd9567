// Starts the reference PDS on loopback with everything in one directory, so that the load generator can be pointed at it.
//
//   node start.mjs <port> <did:plc directory URL> <data directory>
//
// Rate limits and logging are off, as in the server that it is compared with. It serves until SIGTERM.
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'

const [port, plc, data] = process.argv.slice(2)
if (!port || !plc || !data) {
  console.error('usage: node start.mjs <port> <did:plc directory URL> <data directory>')
  process.exit(2)
}
const blobs = join(data, 'blobs')
mkdirSync(blobs, { recursive: true })
Object.assign(process.env, {
  LOG_ENABLED: 'false',
  PDS_HOSTNAME: 'localhost',
  PDS_PORT: port,
  PDS_DEV_MODE: 'true',
  PDS_DATA_DIRECTORY: data,
  PDS_BLOBSTORE_DISK_LOCATION: blobs,
  PDS_DID_PLC_URL: plc,
  PDS_SERVICE_HANDLE_DOMAINS: '.test',
  PDS_INVITE_REQUIRED: 'false',
  PDS_RATE_LIMITS_ENABLED: 'false',
  // Nobody else ever reaches this server.
  PDS_JWT_SECRET: 'measured-on-loopback-only',
  PDS_ADMIN_PASSWORD: 'measured-on-loopback-only',
  PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX: '11'.repeat(32),
  PDS_BSKY_APP_VIEW_URL: 'https://appview.invalid',
  PDS_BSKY_APP_VIEW_DID: 'did:web:appview.invalid',
})
const { PDS, envToCfg, envToSecrets, readEnv } = await import('@atproto/pds')
const env = readEnv()
const server = await PDS.create(envToCfg(env), envToSecrets(env))
await server.start()
console.log(`the reference PDS serves on port ${port}, process ${process.pid}`)
process.once('SIGTERM', async () => {
  await server.destroy()
  process.exit(0)
})
