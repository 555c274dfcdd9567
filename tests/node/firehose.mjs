// firehose.mjs <pds-url> <plc-url> --until <commit cid> [--cursor N] [--timeout MS]
//
// Reads the firehose from the cursor (default 0) until the event of that commit, twice: raw, checking order, the chain
// of data roots, signatures and that the operations undo to the root before; and with @atproto/sync, which must accept
// every operation. Prints one JSON line an event.
import { Firehose } from '@atproto/sync'
import { MST, MemoryBlockstore, cborToLex, readCarWithRoot, verifyCommitSig } from '@atproto/repo'
import { args, check, firehose, identities, main, same, within } from './lib.mjs'

const { words, options } = args()
const [pds, plc] = words
const cursor = Number(options.cursor ?? 0)
const timeout = Number(options.timeout ?? 30_000)

/** Undoes an event's operations on the part of the tree that it carries, and gives the root that this leads to. */
async function undo(event, blocks, data) {
  let tree = MST.load(new MemoryBlockstore(blocks), data)
  for (const op of event.ops) {
    if (op.action === 'create') tree = await tree.delete(op.path)
    if (op.action === 'update') tree = await tree.update(op.path, op.prev)
    if (op.action === 'delete') tree = await tree.add(op.path, op.prev)
  }
  return tree.getPointer()
}

async function raw(resolver) {
  const roots = new Map()
  const revs = new Map()
  const seen = []
  let last = cursor
  for await (const { op, t, body } of firehose(pds, cursor)) {
    check(op === 1, `the firehose sent an error: ${JSON.stringify(body)}`)
    if (t === '#info') {
      console.log(JSON.stringify({ type: t, name: body.name }))
      continue
    }
    check(Number.isSafeInteger(body.seq), `seq ${body.seq} is not a safe integer`)
    check(body.seq > last, `seq ${body.seq} came after ${last}`)
    last = body.seq
    check(!Number.isNaN(Date.parse(body.time)), `time ${body.time} of event ${body.seq}`)
    const line = { seq: body.seq, type: t, did: body.repo ?? body.did }
    if (t === '#commit' || t === '#sync') {
      const car = await readCarWithRoot(body.blocks)
      const commit = cborToLex(car.blocks.get(car.root))
      same([commit.did, commit.rev, commit.version, commit.prev], [line.did, body.rev, 3, null], `commit of event ${body.seq}`)
      const key = await resolver.did.resolveAtprotoKey(line.did)
      check(await verifyCommitSig(commit, key), `the signature of event ${body.seq} does not verify`)
      line.rev = body.rev
      line.commit = car.root.toString()
      if (t === '#commit') {
        check(car.root.equals(body.commit), `the CAR of event ${body.seq} has another root than its commit`)
        check(!body.tooBig && !body.rebase && Array.isArray(body.blobs), `flags of event ${body.seq}`)
        check((revs.get(line.did) ?? '') < body.rev, `rev ${body.rev} of event ${body.seq} does not grow`)
        const before = roots.get(line.did)
        if (before) {
          same(body.prevData?.toString(), before, `prevData of event ${body.seq}`)
          same(body.since, revs.get(line.did), `since of event ${body.seq}`)
        }
        for (const { action, path, cid, prev } of body.ops) {
          check((action === 'create') === (prev === undefined), `prev of ${action} ${path} in event ${body.seq}`)
          check((action === 'delete') === (cid === null), `cid of ${action} ${path} in event ${body.seq}`)
        }
        if (body.prevData) {
          same((await undo(body, car.blocks, commit.data)).toString(), body.prevData.toString(), `event ${body.seq} undone`)
        }
        line.ops = body.ops.map(({ action, path, cid }) => ({ action, path, cid: cid?.toString() ?? null }))
      }
      roots.set(line.did, commit.data.toString())
      revs.set(line.did, body.rev)
    }
    console.log(JSON.stringify(line))
    seen.push(line)
    if (t === '#commit' && line.commit === options.until) return seen
  }
  throw new Error(`the firehose ended before the commit ${options.until}`)
}

async function official(resolver, expected) {
  const seen = []
  let done, failed
  const finished = new Promise((resolve, reject) => ([done, failed] = [resolve, reject]))
  const client = new Firehose({
    service: pds.replace(/^http/, 'ws'),
    idResolver: resolver,
    unauthenticatedHandles: true,
    subscriptionReconnectDelay: 100,
    getCursor: () => cursor,
    onError: (error) => failed(new Error(`@atproto/sync refused something: ${error.message}`, { cause: error.cause ?? error })),
    handleEvent: (event) => {
      const key = event.uri ? `${event.uri.collection}/${event.uri.rkey}` : ''
      seen.push(`${event.seq} ${event.event} ${event.did} ${key}`.trim())
      if (seen.length === expected.length) done()
    },
  })
  client.start().catch(failed)
  try {
    await finished
  } finally {
    client.destroy().catch(() => {})
  }
  same(seen, expected, 'events that @atproto/sync verified')
}

main(async () => {
  check(pds && plc && options.until, 'usage: firehose.mjs <pds-url> <plc-url> --until <commit cid> [--cursor N] [--timeout MS]')
  const resolver = identities(plc)
  const seen = await within(timeout, raw(resolver), 'the raw firehose')
  const expected = seen.flatMap((event) => event.type === '#commit'
    ? event.ops.map((op) => `${event.seq} ${op.action} ${event.did} ${op.path}`)
    : [`${event.seq} ${event.type.slice(1)} ${event.did}`])
  await within(timeout, official(resolver, expected), '@atproto/sync')
  console.error(`${seen.length} events, ${expected.length} of them or their operations verified twice`)
})
