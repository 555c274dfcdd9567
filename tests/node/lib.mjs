// What the scripts of this folder share: checks that name what was expected, a raw firehose reader, a PNG maker.
import { deflateSync, crc32 } from 'node:zlib'
import { decodeAll } from '@atproto/lex-cbor'
import { IdResolver } from '@atproto/identity'
import { WebSocket } from 'ws'

/** Runs a script: prints what went wrong, in one line first, and exits 1 on the first wrong thing. */
export async function main(run) {
  try {
    await run()
    process.exit(0)
  } catch (error) {
    console.error(`FAILED: ${error?.message ?? error}`)
    if (error?.stack) console.error(error.stack)
    if (error?.cause) console.error('because of', error.cause)
    process.exit(1)
  }
}

/** Throws unless the condition holds. */
export function check(condition, what) {
  if (!condition) throw new Error(what)
}

/** Throws unless both are the same as JSON. */
export function same(actual, expected, what) {
  const [a, b] = [JSON.stringify(actual), JSON.stringify(expected)]
  if (a !== b) throw new Error(`${what}: expected ${b}, got ${a}`)
}

/** Throws unless the promise rejects with this HTTP status and XRPC error name. */
export async function refused(promise, status, name, what) {
  let value
  try {
    value = await promise
  } catch (error) {
    if (error?.status === status && error?.error === name) return error
    throw new Error(`${what}: expected ${status} ${name}, got ${error?.status} ${error?.error}: ${error?.message}`)
  }
  throw new Error(`${what}: expected ${status} ${name}, got a success: ${JSON.stringify(value?.data ?? value)}`)
}

/** Waits at most this long. */
export function within(ms, promise, what) {
  let timer
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing within ${ms} ms`)), ms)
  })
  return Promise.race([promise, late]).finally(() => clearTimeout(timer))
}

/** `--name value` pairs and the words between them. */
export function args() {
  const words = []
  const options = {}
  const given = process.argv.slice(2)
  for (let i = 0; i < given.length; i++) {
    if (given[i].startsWith('--')) options[given[i].slice(2)] = given[++i]
    else words.push(given[i])
  }
  return { words, options }
}

/** Identity look-ups against a directory on this machine (the default client refuses loopback addresses). */
export function identities(plcUrl) {
  return new IdResolver({ plcUrl, timeout: 5000, fetch: globalThis.fetch })
}

/** A PNG of one colour, eight bits a channel. */
export function png(width, height, [red, green, blue]) {
  const row = Buffer.concat([Buffer.from([0]), Buffer.concat(Array(width).fill(Buffer.from([red, green, blue])))])
  const header = Buffer.alloc(13)
  header.writeUInt32BE(width, 0)
  header.writeUInt32BE(height, 4)
  header.set([8, 2, 0, 0, 0], 8)
  const chunk = (type, data) => {
    const body = Buffer.concat([Buffer.from(type, 'latin1'), data])
    const out = Buffer.alloc(8 + data.length + 4)
    out.writeUInt32BE(data.length, 0)
    body.copy(out, 4)
    out.writeUInt32BE(crc32(body), 8 + data.length)
    return out
  }
  const pixels = deflateSync(Buffer.concat(Array(height).fill(row)))
  const magic = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a])
  return Buffer.concat([magic, chunk('IHDR', header), chunk('IDAT', pixels), chunk('IEND', Buffer.alloc(0))])
}

/** Bytes of an XRPC query that answers something else than JSON. */
export async function download(pds, method, params) {
  const url = new URL(`/xrpc/${method}`, pds)
  for (const [name, value] of Object.entries(params)) {
    for (const one of [value].flat()) url.searchParams.append(name, one)
  }
  const response = await fetch(url)
  const body = new Uint8Array(await response.arrayBuffer())
  check(response.ok, `${method} answered ${response.status}: ${Buffer.from(body).toString().slice(0, 300)}`)
  return { body, type: response.headers.get('content-type'), headers: response.headers }
}

/**
 * Events of the firehose as they come off the socket: `{ op, t, body }`. Ends when the connection does.
 * No cursor = live only.
 */
export async function* firehose(pds, cursor) {
  const url = new URL('/xrpc/com.atproto.sync.subscribeRepos', pds)
  url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:'
  if (cursor !== undefined) url.searchParams.set('cursor', String(cursor))
  const socket = new WebSocket(url)
  const queue = []
  let wake = () => {}
  let ended = null
  socket.on('message', (data, binary) => {
    queue.push({ data, binary })
    wake()
  })
  socket.on('error', (error) => {
    ended ??= error
    wake()
  })
  socket.on('close', () => {
    ended ??= true
    wake()
  })
  try {
    for (;;) {
      while (queue.length) {
        const { data, binary } = queue.shift()
        check(binary, 'a firehose message is not binary')
        const items = [...decodeAll(new Uint8Array(data))]
        check(items.length === 2, `a firehose message holds ${items.length} CBOR items instead of 2`)
        yield { op: items[0].op, t: items[0].t, body: items[1], bytes: data.length }
      }
      if (ended) {
        if (ended !== true) throw ended
        return
      }
      await new Promise((resolve) => {
        wake = resolve
        if (queue.length || ended) resolve()
      })
    }
  } finally {
    socket.terminate()
  }
}
