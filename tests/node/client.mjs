// client.mjs <pds-url>: what an app does, through the official client library.
// The last lines tell the accounts and the last commit, as JSON, for the scripts that look at the same data.
import { AtpAgent } from '@atproto/api'
import { args, check, download, main, png, refused, same } from './lib.mjs'

const PASSWORD = 'correct horse battery staple'
const { words } = args()
const service = words[0]

const now = () => new Date().toISOString()
const post = (text, more = {}) => ({ $type: 'app.bsky.feed.post', text, createdAt: now(), ...more })
const bearer = (token) => ({ headers: { authorization: `Bearer ${token}` } })

main(async () => {
  check(service, 'usage: client.mjs <pds-url>')
  const guest = new AtpAgent({ service })

  // The server tells who it is.
  const { data: about } = await guest.com.atproto.server.describeServer()
  check(about.did.startsWith('did:web:'), `describeServer.did is ${about.did}`)
  check(about.availableUserDomains.length > 0, 'describeServer names no domain for handles')
  same(about.inviteCodeRequired ?? false, false, 'invite codes')
  const domain = about.availableUserDomains[0]
  const tag = Date.now().toString(36).slice(-7)

  // Two accounts.
  const alice = new AtpAgent({ service })
  const bob = new AtpAgent({ service })
  const names = { alice: `a-${tag}${domain}`, bob: `b-${tag}${domain}` }
  const created = await alice.createAccount({ handle: names.alice, email: `a-${tag}@example.com`, password: PASSWORD })
  await bob.createAccount({ handle: names.bob, email: `b-${tag}@example.com`, password: PASSWORD })
  check(/^did:plc:[a-z2-7]{24}$/.test(created.data.did), `the new DID is ${created.data.did}`)
  same(created.data.handle, names.alice, 'handle of the new account')
  await refused(
    new AtpAgent({ service }).createAccount({ handle: names.alice, email: `x-${tag}@example.com`, password: PASSWORD }),
    400, 'HandleNotAvailable', 'a handle that is taken')
  await refused(
    new AtpAgent({ service }).createAccount({ handle: 'someone.example.org', email: `y-${tag}@example.com`, password: PASSWORD }),
    400, 'UnsupportedDomain', 'a handle of a foreign domain')
  const did = alice.did

  // Sessions.
  const login = new AtpAgent({ service })
  await login.login({ identifier: names.alice, password: PASSWORD })
  same(login.did, did, 'DID after login by handle')
  await login.login({ identifier: `A-${tag}@example.com`, password: PASSWORD })
  same(login.did, did, 'DID after login by e-mail, whatever its case')
  await refused(guest.login({ identifier: names.alice, password: 'wrong' }), 401, 'AuthenticationRequired', 'a wrong password')
  await refused(guest.login({ identifier: `nobody${domain}`, password: 'wrong' }), 401, 'AuthenticationRequired', 'an unknown account')
  const { data: session } = await login.com.atproto.server.getSession()
  same([session.did, session.handle, session.email, session.active], [did, names.alice, `a-${tag}@example.com`, true], 'getSession')
  await refused(guest.com.atproto.server.getSession(), 401, 'AuthMissing', 'getSession without credentials')

  // Refresh: within the grace a used token gives the same successor, after logout it gives nothing.
  const server = guest.com.atproto.server
  const first = login.session.refreshJwt
  const second = (await server.refreshSession(undefined, bearer(first))).data.refreshJwt
  const again = (await server.refreshSession(undefined, bearer(first))).data.refreshJwt
  const id = (jwt) => JSON.parse(Buffer.from(jwt.split('.')[1], 'base64url').toString()).jti
  check(id(second) !== id(first), 'a refresh gives a new token')
  same(id(again), id(second), 'successor of a token that is used twice within the grace')
  await refused(server.refreshSession(undefined, bearer(login.session.accessJwt)), 400, 'InvalidToken', 'refresh with an access token')
  await server.deleteSession(undefined, bearer(second))
  await refused(server.refreshSession(undefined, bearer(second)), 400, 'ExpiredToken', 'refresh after logout')

  // Identity.
  same((await guest.resolveHandle({ handle: names.bob })).data.did, bob.did, 'resolveHandle')
  await refused(guest.resolveHandle({ handle: `no-such${domain}` }), 400, 'HandleNotFound', 'resolveHandle of nobody')

  // Posts, a reply, a like.
  const posts = []
  for (let i = 0; i < 5; i++) posts.push(await alice.post(post(`post number ${i} — ünïcode ✓`)))
  const root = posts[0]
  const reply = await bob.post(post('a reply', { reply: { root, parent: root } }))
  await bob.like(root.uri, root.cid)
  const likes = async () =>
    (await guest.com.atproto.repo.listRecords({ repo: bob.did, collection: 'app.bsky.feed.like' })).data.records
  same((await likes()).length, 1, 'likes')
  const rkey = (uri) => uri.split('/').pop()
  const fetched = await guest.com.atproto.repo.getRecord({ repo: names.bob, collection: 'app.bsky.feed.post', rkey: rkey(reply.uri) })
  same([fetched.data.uri, fetched.data.cid], [reply.uri, reply.cid], 'getRecord of the reply')
  same(fetched.data.value.reply.parent.cid, root.cid, 'the reply\'s parent')
  await refused(
    guest.com.atproto.repo.getRecord({ repo: did, collection: 'app.bsky.feed.post', rkey: 'nothing-here' }),
    400, 'RecordNotFound', 'getRecord of nothing')

  // A post with an image.
  const image = png(16, 9, [200, 40, 90])
  const upload = await alice.uploadBlob(image, { encoding: 'image/png' })
  const blob = upload.data.blob
  same([blob.mimeType, blob.size], ['image/png', image.length], 'type and size of the uploaded image')
  const blobCid = blob.ref.toString()
  await refused(guest.com.atproto.sync.getBlob({ did, cid: blobCid }), 400, 'InvalidRequest', 'getBlob before a record refers to it')
  const picture = await alice.post(
    post('a picture', { embed: { $type: 'app.bsky.embed.images', images: [{ image: blob, alt: 'a colour' }] } }))
  const got = await download(service, 'com.atproto.sync.getBlob', { did, cid: blobCid })
  check(Buffer.compare(Buffer.from(got.body), image) === 0, 'getBlob gives back other bytes than were uploaded')
  same(got.type, 'image/png', 'content type of getBlob')
  same(got.headers.get('x-content-type-options'), 'nosniff', 'getBlob header')
  same((await guest.com.atproto.sync.listBlobs({ did })).data.cids, [blobCid], 'listBlobs')

  // Update, and an update that changes nothing.
  const profile = (displayName) => ({ repo: did, collection: 'app.bsky.actor.profile', rkey: 'self',
    record: { $type: 'app.bsky.actor.profile', displayName } })
  const one = await alice.com.atproto.repo.putRecord(profile('Alice'))
  const two = await alice.com.atproto.repo.putRecord({ ...profile('Alice II'), swapRecord: one.data.cid })
  check(two.data.cid !== one.data.cid && two.data.commit, 'putRecord with new content makes a commit')
  const noop = await alice.com.atproto.repo.putRecord(profile('Alice II'))
  same([noop.data.cid, noop.data.commit ?? null], [two.data.cid, null], 'putRecord without a change')
  await refused(alice.com.atproto.repo.putRecord({ ...profile('III'), swapRecord: one.data.cid }), 400, 'InvalidSwap', 'a stale swapRecord')
  await refused(alice.com.atproto.repo.putRecord({ ...profile('III'), swapRecord: null }), 400, 'InvalidSwap', 'swapRecord null on an existing record')
  await refused(
    alice.com.atproto.repo.createRecord({ repo: did, collection: 'app.bsky.feed.post', record: post('x'), swapCommit: one.data.commit.cid }),
    400, 'InvalidSwap', 'a stale swapCommit')
  await refused(
    bob.com.atproto.repo.createRecord({ repo: did, collection: 'app.bsky.feed.post', record: post('not mine') }),
    401, 'AuthenticationRequired', 'a write into somebody else\'s repo')

  // Delete, twice.
  await alice.deletePost(posts[4].uri)
  await alice.deletePost(posts[4].uri)
  await refused(
    guest.com.atproto.repo.getRecord({ repo: did, collection: 'app.bsky.feed.post', rkey: rkey(posts[4].uri) }),
    400, 'RecordNotFound', 'getRecord after a delete')

  // List in both directions, page by page.
  const expected = [posts[0], posts[1], posts[2], posts[3], picture].map((p) => p.uri)
  const list = async (reverse) => {
    const uris = []
    let cursor
    for (;;) {
      const { data } = await guest.com.atproto.repo.listRecords({ repo: did, collection: 'app.bsky.feed.post', limit: 2, cursor, reverse })
      if (data.records.length === 0) return uris
      check(data.records.length <= 2, 'listRecords exceeds its limit')
      uris.push(...data.records.map((r) => r.uri))
      cursor = data.cursor
      if (!cursor) return uris
    }
  }
  same(await list(true), expected, 'listRecords, oldest first')
  same(await list(false), expected.toReversed(), 'listRecords, newest first')

  // Several writes in one commit, all or nothing.
  const write = (action, key, value) => ({ $type: `com.atproto.repo.applyWrites#${action}`, collection: 'com.example.thing', rkey: key,
    ...(value ? { value: { $type: 'com.example.thing', ...value } } : {}) })
  const batch = await alice.com.atproto.repo.applyWrites({ repo: did,
    writes: [write('create', 'one', { n: 1 }), write('create', 'two', { n: 2 }), write('create', 'three', { n: 3 })] })
  same(batch.data.results.map((r) => r.$type.split('#')[1]), ['createResult', 'createResult', 'createResult'], 'results of applyWrites')
  const mixed = await alice.com.atproto.repo.applyWrites({ repo: did,
    writes: [write('update', 'one', { n: 10 }), write('delete', 'two'), write('create', 'four', { n: 4 })],
    swapCommit: batch.data.commit.cid })
  same(mixed.data.results.map((r) => r.$type.split('#')[1]), ['updateResult', 'deleteResult', 'createResult'], 'results of mixed writes')
  const failed = await alice.com.atproto.repo
    .applyWrites({ repo: did, writes: [write('create', 'five', { n: 5 }), write('create', 'one', { n: 6 })] })
    .then(() => null, (error) => error)
  check(failed && failed.status < 500, `creating an existing record is refused with a 4xx, not ${failed?.status}`)
  const things = (await guest.com.atproto.repo.listRecords({ repo: did, collection: 'com.example.thing', reverse: true })).data.records
  same(things.map((r) => [rkey(r.uri), r.value.n]), [['four', 4], ['one', 10], ['three', 3]], 'records after the batches')

  // What the repo says of itself.
  const { data: repo } = await guest.com.atproto.repo.describeRepo({ repo: did })
  same([repo.did, repo.handle, repo.handleIsCorrect], [did, names.alice, true], 'describeRepo')
  same(repo.collections.toSorted(), ['app.bsky.actor.profile', 'app.bsky.feed.post', 'com.example.thing'], 'collections')
  const { data: head } = await guest.com.atproto.sync.getLatestCommit({ did })
  same(head, mixed.data.commit, 'getLatestCommit')
  const { data: status } = await guest.com.atproto.sync.getRepoStatus({ did })
  same([status.did, status.active, status.rev], [did, true, head.rev], 'getRepoStatus')
  const repos = (await guest.com.atproto.sync.listRepos({ limit: 1000 })).data.repos
  same(repos.find((r) => r.did === did)?.head, head.cid, 'head in listRepos')

  console.log(JSON.stringify({ accounts: [did, bob.did], lastCommit: head.cid, lastRepo: did }))
})
