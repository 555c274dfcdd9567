// migrate.mjs <url> <url> … --ours <url> --plc <url> --mail <file> [--records N]
//
// An account begins at the first server and moves along all of them with the official client library, as people move: repo, blobs,
// preferences, and the identity with a mailed code. Before every move it is left to write. What must hold after each: the same records
// under the same root, the same bytes in blobs, the same preferences; events that a follower of each server can verify; and nothing
// that the server before has given away is good for anything. A server that the account comes back to has deleted it before.
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { AtpAgent } from '@atproto/api'
import { cborToLex, readCarWithRoot, verifyCommitSig, verifyRepo } from '@atproto/repo'
import { args, check, firehose, identities, main, png, refused, same } from './lib.mjs'

const PASSWORD = 'correct horse battery staple'
const HANDLE = 'mover.test'
/** How long anything that comes by itself may take. */
const SOON_MS = 60_000
const { words, options } = args()
const SOME = Number(options.records ?? 30)
const resolver = identities(options.plc)
const bearer = (token) => ({ headers: { authorization: `Bearer ${token}` } })
const now = () => new Date().toISOString()

/** Waits until `find` gives something. */
async function until(find, what) {
  const end = Date.now() + SOON_MS
  for (;;) {
    const found = await find()
    if (found) return found
    check(Date.now() < end, `${what}: nothing within ${SOON_MS} ms`)
    await new Promise((resolve) => setTimeout(resolve, 25))
  }
}

/** Asks again while a server says that it is busy: passwords take their time, and machines do other things. */
async function patiently(ask) {
  const end = Date.now() + SOON_MS
  for (;;) {
    try {
      return await ask()
    } catch (error) {
      if (error?.status !== 503 || Date.now() > end) throw error
      await new Promise((resolve) => setTimeout(resolve, 250))
    }
  }
}

const login = (agent, identifier, password) => patiently(() => agent.login({ identifier, password }))

/** The code in the newest mail to an address that is not among those seen before. */
const seenCodes = new Set()
function mailedCode(address) {
  return until(() => {
    for (const line of readFileSync(options.mail, 'utf8').split('\n')) {
      if (!line.startsWith('{') || !line.endsWith('}')) continue
      const mail = JSON.parse(line)
      const code = mail.to?.[0] === address && mail.text.match(/\b[A-Z2-7]{5}-[A-Z2-7]{5}\b/)?.[0]
      if (code && !seenCodes.has(code)) return seenCodes.add(code) && code
    }
  }, `a code for ${address}`)
}

/** A server with one who follows its events from the beginning. */
function follow(url) {
  const server = { url, ours: url === options.ours, events: [] }
  const reading = async () => {
    for await (const { op, t, body } of firehose(url, 0)) {
      check(op === 1 && t !== '#info', `${url} says ${t} ${JSON.stringify(body)}`)
      server.events.push({ t, body })
    }
  }
  reading().then(() => (server.failed = new Error(`the event stream of ${url} ended`)), (error) => (server.failed = error))
  return server
}

/** Events of a DID at a server behind the first `mark`, once there are `count`. */
async function events(server, did, mark, count) {
  const of = () => server.events.slice(mark).filter(({ body }) => (body.repo ?? body.did) === did)
  await until(() => {
    if (server.failed) throw server.failed
    return of().length >= count
  }, `${count} events at ${server.url} of which ${of().length} came`)
  return of()
}

/** An event in a few words. */
function told({ t, body }) {
  if (t === '#account') return `${t} ${body.active} ${body.status ?? '-'}`
  return t === '#identity' ? `${t} ${'handle' in body ? body.handle : '-'}` : t
}

/** What a repo holds, verified with a key. */
async function repo(agent, did, key) {
  const { data } = await agent.com.atproto.sync.getRepo({ did })
  const { root, blocks } = await readCarWithRoot(data)
  const { creates } = await verifyRepo(blocks, root, did, key)
  const { data: tree, rev } = cborToLex(blocks.get(root))
  const records = creates.map(({ collection, rkey, cid }) => `${collection}/${rkey} ${cid}`).toSorted()
  return { car: data, head: { cid: root.toString(), rev }, tree: tree.toString(), records }
}

/** Everybody's blobs: type and bytes. */
async function blobs(agent, did) {
  const found = {}
  let cursor
  do {
    const { data } = await agent.com.atproto.sync.listBlobs({ did, cursor, limit: 3 })
    for (const cid of data.cids) {
      const { data: bytes, headers } = await agent.com.atproto.sync.getBlob({ did, cid })
      found[cid] = { type: headers['content-type'].split(';')[0], bytes: Buffer.from(bytes) }
    }
    cursor = data.cids.length ? data.cursor : undefined
  } while (cursor)
  return found
}

const summary = (found) => Object.entries(found).map(([cid, { type, bytes }]) => [cid, type, bytes.length]).toSorted()

/** Records of many types; some name blobs, some what no schema is known of. */
async function write(agent, round) {
  const did = agent.did
  const make = async (collection, record, rkey) => {
    const input = { repo: did, collection, rkey, record: { $type: collection, createdAt: now(), ...record } }
    const { data } = await agent.com.atproto.repo[rkey ? 'putRecord' : 'createRecord'](input)
    return data
  }
  const upload = async (bytes, encoding) => (await agent.uploadBlob(bytes, { encoding })).data.blob
  const picture = await upload(png(20 + round, 10, [round * 40, 99, 7]), 'image/png')
  const banner = await upload(png(30 + round, 10, [9, round * 40, 7]), 'image/png')
  const text = await upload(Buffer.from(`${round} ünïcode `.repeat(5000)), 'text/plain')
  await make('app.bsky.actor.profile', { displayName: `Mover ${round}`, avatar: picture, banner }, 'self')
  const posts = []
  for (let i = 0; i < SOME; i++) {
    const embed = i % 8 === 0 ? { embed: { $type: 'app.bsky.embed.images', images: [{ image: picture, alt: `${i}` }] } } : {}
    posts.push(await agent.post({ text: `post ${i} of round ${round} — ünïcode ✓`, langs: ['en', 'ja'], createdAt: now(), ...embed }))
  }
  const [root, parent, gone] = posts
  await agent.post({ text: 'a reply', reply: { root, parent }, createdAt: now() })
  await agent.like(root.uri, root.cid)
  await agent.repost(parent.uri, parent.cid)
  await agent.follow('did:plc:aaaaaaaaaaaaaaaaaaaaaaaa')
  await agent.deletePost(gone.uri)
  const list = await make('app.bsky.graph.list', { name: `List ${round}`, purpose: 'app.bsky.graph.defs#curatelist' })
  await make('app.bsky.graph.listitem', { subject: did, list: list.uri })
  await make('app.bsky.graph.block', { subject: 'did:plc:bbbbbbbbbbbbbbbbbbbbbbbb' })
  const gate = root.uri.split('/').pop()
  await make('app.bsky.feed.threadgate', { post: root.uri, allow: [] }, gate)
  await make('com.example.note', {
    text, deep: [{ er: [[{}, null, true, -9007199254740991]] }], link: { $link: root.cid }, bytes: { $bytes: 'AAECAwQ' }, '': 'ß',
  }, `note-${round}.~:_`)
}

const PREFERENCES = [
  { $type: 'app.bsky.actor.defs#adultContentPref', enabled: true },
  { $type: 'app.bsky.actor.defs#contentLabelPref', label: 'porn', visibility: 'warn' },
  { $type: 'app.bsky.actor.defs#savedFeedsPrefV2', items: [{ id: '3kaaaaaaaaa2a', type: 'timeline', value: 'following', pinned: true }] },
  { $type: 'app.bsky.actor.defs#personalDetailsPref', birthDate: '1990-03-02T00:00:00.000Z' },
  { $type: 'app.bsky.actor.defs#mutedWordsPref', items: [{ value: 'ünïcode', targets: ['content', 'tag'], actorTarget: 'all' }] },
]
const preferences = async (agent) => (await agent.app.bsky.actor.getPreferences()).data.preferences
/** Preferences have no order, and their fields neither. */
const byType = (list) => list.map((one) => Object.fromEntries(Object.entries(one).toSorted())).toSorted((a, b) => (a.$type < b.$type ? -1 : 1))

/** One move. Gives the session at the new server. */
async function move(from, to, old, turn) {
  const did = old.did
  const what = `move ${turn}`
  const address = `mover-${turn}@example.com`
  const oldKey = await resolver.did.resolveAtprotoKey(did, true)
  const before = await repo(old, did, oldKey)
  const [bytesBefore, likings] = [await blobs(old, did), await preferences(old)]
  check(before.records.length > SOME && Object.keys(bytesBefore).length >= 3, `${what}: there is too little to move`)
  const [markFrom, markTo] = [from.events.length, to.events.length]
  const { data: app } = await old.com.atproto.server.createAppPassword({ name: `app ${turn}` })

  // An account with an existing identity, by its owner's word.
  const agent = new AtpAgent({ service: to.url })
  const { data: about } = await agent.com.atproto.server.describeServer()
  const give = async (lxm) => (await old.com.atproto.server.getServiceAuth({ aud: about.did, lxm })).data.token
  const arrival = { did, handle: HANDLE, email: address, password: PASSWORD }
  await refused(agent.com.atproto.server.createAccount(arrival), 401, 'AuthenticationRequired', `${what}: an identity without a word of its owner`)
  const word = await give('com.atproto.server.createAccount')
  const { data: account } = await patiently(() => agent.com.atproto.server.createAccount(arrival, { ...bearer(word), encoding: 'application/json' }))
  same([account.did, account.handle], [did, HANDLE], `${what}: the account that was made`)
  await login(agent, did, PASSWORD)
  same([agent.session.active, agent.session.status], [false, 'deactivated'], `${what}: the account begins`)

  // The repo.
  await agent.com.atproto.repo.importRepo(before.car, { encoding: 'application/vnd.ipld.car' })
  const { data: credentials } = await agent.com.atproto.identity.getRecommendedDidCredentials()
  const newKey = credentials.verificationMethods.atproto
  check(newKey !== oldKey, `${what}: the new server signs with the old key`)
  // The reference keeps the commit that it was given until the next write.
  const importedKey = to.ours ? newKey : oldKey
  const imported = await repo(agent, did, importedKey)
  same([imported.tree, imported.records], [before.tree, before.records], `${what}: the imported repo`)

  // Blobs.
  const status = async () => (await agent.com.atproto.server.checkAccountStatus()).data
  const wanted = await status()
  same([wanted.activated, wanted.validDid, wanted.indexedRecords, wanted.expectedBlobs, wanted.importedBlobs],
    [false, false, before.records.length, Object.keys(bytesBefore).length, 0], `${what}: checkAccountStatus after the import`)
  const missing = []
  let cursor
  do {
    const { data } = await agent.com.atproto.repo.listMissingBlobs({ limit: 2, cursor })
    missing.push(...data.blobs.map(({ cid }) => cid))
    cursor = data.blobs.length ? data.cursor : undefined
  } while (cursor)
  same(missing.toSorted(), Object.keys(bytesBefore).toSorted(), `${what}: missing blobs`)
  for (const cid of missing) {
    const { type, bytes } = bytesBefore[cid]
    const { data } = await agent.uploadBlob(bytes, { encoding: type })
    same(data.blob.ref.toString(), cid, `${what}: CID of a blob`)
  }
  same((await agent.com.atproto.repo.listMissingBlobs()).data.blobs, [], `${what}: blobs still missing`)

  // Preferences.
  await agent.app.bsky.actor.putPreferences({ preferences: likings })
  same(byType(await preferences(agent)), byType(likings), `${what}: preferences`)

  // The identity. Until it leads here, the account cannot begin.
  await refused(agent.com.atproto.server.activateAccount(), 400, 'InvalidRequest', `${what}: activation of an identity that leads elsewhere`)
  await old.com.atproto.identity.requestPlcOperationSignature()
  const code = await mailedCode(turn === 1 ? 'mover-0@example.com' : `mover-${turn - 1}@example.com`)
  await refused(old.com.atproto.identity.signPlcOperation({ token: 'AAAAA-BBBBB', ...credentials }), 400, 'InvalidToken', `${what}: a wrong code`)
  const { data: signed } = await old.com.atproto.identity.signPlcOperation({ token: code, ...credentials })
  await refused(old.com.atproto.identity.signPlcOperation({ token: code, ...credentials }), 400, 'InvalidToken', `${what}: a used code`)
  await agent.com.atproto.identity.submitPlcOperation({ operation: signed.operation })
  same(await resolver.did.resolveAtprotoKey(did, true), newKey, `${what}: the key in the DID document`)
  same((await events(to, did, markTo, 1)).map(told), ['#identity -'], `${what}: events before the activation`)
  const ready = await status()
  same([ready.activated, ready.validDid, ready.importedBlobs], [false, true, ready.expectedBlobs], `${what}: checkAccountStatus before the activation`)
  await agent.com.atproto.server.activateAccount()
  await old.com.atproto.server.deactivateAccount({})
  const { pds } = await resolver.did.resolveAtprotoData(did, true)
  same((await new AtpAgent({ service: pds }).com.atproto.server.describeServer()).data.did, about.did, `${what}: the server in the DID document`)

  // What was there is there, for everybody.
  const guest = new AtpAgent({ service: to.url })
  const after = await repo(guest, did, importedKey)
  same([after.tree, after.records], [before.tree, before.records], `${what}: the repo after the activation`)
  const bytesAfter = await blobs(guest, did)
  same(summary(bytesAfter), summary(bytesBefore), `${what}: blobs after the activation`)
  for (const [cid, { bytes }] of Object.entries(bytesBefore)) check(bytes.equals(bytesAfter[cid].bytes), `${what}: bytes of blob ${cid}`)
  same((await guest.resolveHandle({ handle: HANDLE })).data.did, did, `${what}: the handle leads to the account`)

  // It writes, and followers of both servers see what happened and can verify it.
  const { uri } = await agent.post({ text: `moved ${turn} times`, createdAt: now() })
  const written = await repo(guest, did, newKey)
  same(written.records.length, before.records.length + 1, `${what}: records after one more`)
  const [, , , sync, commit, ...more] = await expect(to, did, markTo, `${what}: events of the new server`,
    ['#identity -', '#account true -', `#identity ${HANDLE}`, '#sync', '#commit'])
  same(more, [], `${what}: more events`)
  const synced = await readCarWithRoot(sync.body.blocks)
  const head = cborToLex(synced.blocks.get(synced.root))
  same([head.data.toString(), head.did, head.rev], [before.tree, did, commit.body.since], `${what}: #sync`)
  // The reference tells the time of the import beside the commit that it was given.
  if (to.ours) same(sync.body.rev, head.rev, `${what}: the revision of #sync`)
  check(await verifyCommitSig(head, importedKey), `${what}: the signature of #sync`)
  same([commit.body.prevData.toString(), commit.body.ops.map((op) => `${op.action} ${op.path}`), commit.body.commit.toString()],
    [before.tree, [`create ${uri.split('/').slice(3).join('/')}`], written.head.cid], `${what}: the first commit`)
  await expect(from, did, markFrom, `${what}: events of the old server`, ['#account false deactivated'])
  if (to.ours) official(to, sync.body.seq - 1, written.head.cid)

  await nothingIsLeft(old, agent, { did, app, give, what })
  return agent
}

/** The events of a DID behind a mark, which must be these. */
async function expect(server, did, mark, what, expected) {
  const came = await events(server, did, mark, expected.length)
  same(came.map(told), expected, what)
  return came
}

/** The official consumer, and one of our own that looks at all there is, accept the events. */
function official(server, cursor, commit) {
  const script = fileURLToPath(new URL('firehose.mjs', import.meta.url))
  const { status, stderr } = spawnSync(process.execPath,
    [script, server.url, options.plc, '--cursor', String(cursor), '--until', commit, '--timeout', '60000'], { encoding: 'utf8' })
  check(status === 0, `a follower of ${server.url}: ${stderr}`)
}

/** What the old server gave away does not write any more, neither there nor at the new one. */
async function nothingIsLeft(old, agent, { did, app, give, what }) {
  const note = { repo: did, collection: 'com.example.note', record: { $type: 'com.example.note', text: 'late' } }
  const writes = (by, more) => by.com.atproto.repo.createRecord(note, more)
  await refused(writes(old), 401, 'AccountDeactivated', `${what}: a write at the old server`)
  const late = new AtpAgent({ service: old.serviceUrl })
  await login(late, did, app.password)
  same(late.session.active, false, `${what}: a session of an app at the old server`)
  await refused(writes(late), 401, 'AccountDeactivated', `${what}: an app's write at the old server`)
  await refused(old.com.atproto.server.activateAccount(), 400, 'InvalidRequest', `${what}: activation at the old server`)
  const guest = new AtpAgent({ service: agent.serviceUrl })
  await refused(login(guest, did, app.password), 401, 'AuthenticationRequired', `${what}: an old app's password at the new server`)
  for (const token of [old.session.accessJwt, late.session.accessJwt]) {
    await refused(writes(guest, { ...bearer(token), encoding: 'application/json' }), 400, 'InvalidToken', `${what}: an old access token at the new server`)
  }
  await refused(guest.com.atproto.server.refreshSession(undefined, bearer(old.session.refreshJwt)), 400, 'InvalidToken', `${what}: an old refresh token at the new server`)
  const word = await give('com.atproto.repo.uploadBlob')
  await refused(guest.uploadBlob(Buffer.from('late'), { encoding: 'text/plain', ...bearer(word) }), 401, 'BadJwtSignature', `${what}: a service token of the old key`)
}

/** The account leaves a server for good. */
async function leave(server, agent, address) {
  const did = agent.did
  const mark = server.events.length
  await agent.com.atproto.server.requestAccountDelete()
  const token = await mailedCode(address)
  await patiently(() => agent.com.atproto.server.deleteAccount({ did, password: PASSWORD, token }))
  await expect(server, did, mark, 'events of a deletion', ['#account false deleted'])
  const guest = new AtpAgent({ service: server.url })
  await refused(guest.com.atproto.server.refreshSession(undefined, bearer(agent.session.refreshJwt)), 400, 'InvalidRequest', 'a refresh token of an account that is gone')
  await refused(login(guest, did, PASSWORD), 401, 'AuthenticationRequired', 'a login of an account that is gone')
  await refused(guest.com.atproto.sync.getRepo({ did }), 400, 'RepoNotFound', 'the repo of an account that is gone')
}

main(async () => {
  check(words.length >= 2 && options.plc && options.mail, 'usage: migrate.mjs <url> <url> … --ours <url> --plc <url> --mail <file> [--records N]')
  const servers = new Map([...new Set(words)].map((url) => [url, follow(url)]))
  let agent = new AtpAgent({ service: words[0] })
  await agent.com.atproto.server.createAccount({ handle: HANDLE, email: 'mover-0@example.com', password: PASSWORD })
  await login(agent, HANDLE, PASSWORD)
  await agent.app.bsky.actor.putPreferences({ preferences: PREFERENCES })
  const left = new Map()
  for (const [turn, url] of words.entries()) {
    if (turn === 0) continue
    await write(agent, turn)
    const known = left.get(url)
    if (known) await leave(servers.get(url), known.agent, known.address)
    left.set(words[turn - 1], { agent, address: `mover-${turn - 1}@example.com` })
    agent = await move(servers.get(words[turn - 1]), servers.get(url), agent, turn)
    console.log(JSON.stringify({ turn, to: url }))
  }
})
