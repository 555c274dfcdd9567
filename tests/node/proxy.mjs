// proxy.mjs <pds-url> --plc <url> --chat <did>: what an app asks of services that stand behind its server (app-view.mjs).
import { AtpAgent, BSKY_LABELER_DID } from '@atproto/api'
import { args, check, main, png, refused, same } from './lib.mjs'

const { options, words } = args()
const service = words[0]

main(async () => {
  check(service && options.plc && options.chat, 'usage: proxy.mjs <pds-url> --plc <url> --chat <did>')
  const alice = new AtpAgent({ service })
  const { data: about } = await alice.com.atproto.server.describeServer()
  const tag = Date.now().toString(36).slice(-7)
  const handle = `p-${tag}${about.availableUserDomains[0]}`
  await alice.createAccount({ handle, email: `p-${tag}@example.com`, password: 'correct horse battery staple' })

  // The AppView: it is the one who is asked when nobody is named. The token is the account's, and short.
  const timeline = await alice.getTimeline({ limit: 3 })
  const told = JSON.parse(timeline.data.cursor)
  same(told.iss, alice.did, 'the account for which the AppView is asked')
  check(told.lifetime > 0 && told.lifetime <= 60, `the token lives ${told.lifetime} s`)
  check(told.jti, 'the token has no id')
  check(told.headers['atproto-accept-labelers']?.includes(BSKY_LABELER_DID), 'labelers that the app accepts do not go up')
  for (const name of ['cookie', 'user-agent', 'x-forwarded-for']) check(!(name in told.headers), `${name} goes up`)
  same(timeline.headers['atproto-repo-rev'], '3kabc', 'the revision that the AppView knows')
  same(timeline.headers['atproto-content-labelers'], BSKY_LABELER_DID, 'labelers of the answer')
  check(!('set-cookie' in timeline.headers), 'a cookie comes down')
  const again = JSON.parse((await alice.getTimeline()).data.cursor)
  check(again.jti !== told.jti, 'two requests have the same token')

  // A procedure: its body arrives as it is.
  const mute = await fetch(`${service}/xrpc/app.bsky.graph.muteActor`, {
    method: 'POST', body: JSON.stringify({ actor: 'did:example:ünïcode' }),
    headers: { 'content-type': 'application/json', authorization: `Bearer ${alice.session.accessJwt}` },
  })
  same([mute.status, await mute.json()], [200, { got: '{"actor":"did:example:ünïcode"}' }], 'the body of a procedure')

  // Errors of a service are told, its mistakes are not ours.
  await refused(alice.call('app.bsky.feed.getFeedSkeleton', { feed: 'at://did:example:a/app.bsky.feed.generator/b' }),
    400, 'UnknownFeed', 'an error of the AppView')
  await refused(alice.call('app.bsky.unspecced.getConfig'), 502, 'UpstreamFailure', 'a mistake of the AppView')
  const guest = new AtpAgent({ service })
  await refused(guest.getTimeline(), 401, 'AuthMissing', 'a request without credentials')

  // A service that is named is found by its DID document.
  const chat = alice.withProxy('bsky_chat', options.chat)
  same((await chat.chat.bsky.convo.listConvos()).data, { convos: [], cursor: alice.did }, 'a chat service')
  const named = (name) => alice.call('chat.bsky.convo.listConvos', {}, undefined, { headers: { 'atproto-proxy': name } })
  await refused(named(options.chat), 400, 'InvalidRequest', 'a service without its id')
  await refused(named(`${options.chat}#bsky_other`), 400, 'InvalidRequest', 'a service that the document has not')

  // Reports go to the moderators.
  const subject = { $type: 'com.atproto.admin.defs#repoRef', did: alice.did }
  const { data: report } = await alice.createModerationReport({ reasonType: 'com.atproto.moderation.defs#reasonSpam', reason: 'spam', subject })
  same([report.id, report.reportedBy, report.reason], [7, alice.did, 'spam'], 'a report')

  const head = await fetch(`${service}/xrpc/app.bsky.feed.getTimeline`, {
    method: 'HEAD', headers: { authorization: `Bearer ${alice.session.accessJwt}` },
  })
  same([head.status, await head.text()], [200, ''], 'HEAD')

  // A feed by its generator, a registration for push messages, a record of a repo of elsewhere without credentials.
  const old = 'at://did:plc:aaaaaaaaaaaaaaaaaaaaaaaa/app.bsky.feed.post/3kaaaaaaaaa2a'
  const { data: feed } = await alice.app.bsky.feed.getFeed({ feed: 'at://did:plc:aaaaaaaaaaaaaaaaaaaaaaaa/app.bsky.feed.generator/a' })
  same(feed.feed.map(({ post }) => post.uri), [old], 'a feed')
  const push = { serviceDid: 'did:web:api.example.com', token: 't', platform: 'ios', appId: 'x' }
  check((await alice.app.bsky.notification.registerPush(push)).success, 'a registration for push messages')
  const record = await guest.com.atproto.repo.getRecord({ repo: 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa', collection: 'app.bsky.feed.post', rkey: '3kaaaaaaaaa2a' })
  same(record.data.uri, old, 'a record of elsewhere')

  // Read after write: the AppView stands still, and what is written since is seen at once.
  await alice.upsertProfile((before) => ({ ...before, displayName: 'before' }))
  const { data: commit } = await alice.com.atproto.sync.getLatestCommit({ did: alice.did })
  const stage = { rev: commit.rev, did: alice.did, handle }
  await fetch(`http://${decodeURIComponent(options.chat.split(':')[2])}/stage`, { method: 'POST', body: JSON.stringify(stage) })
  const still = await alice.getTimeline()
  check(!('atproto-upstream-lag' in still.headers), 'nothing is behind yet')
  same(still.data.feed.map(({ post }) => post.uri), [old], 'the timeline before')

  const picture = await alice.uploadBlob(png(2, 1, [1, 2, 3]), { encoding: 'image/png' })
  const post = await alice.post({
    text: 'fresh', embed: {
      $type: 'app.bsky.embed.recordWithMedia',
      record: { $type: 'app.bsky.embed.record', record: { uri: old, cid: 'bafyreie5cvv4h45feadgeuwhbcutmh6t2ceseocckahdoe6uat64zmz454' } },
      media: { $type: 'app.bsky.embed.images', images: [{ image: picture.data.blob, alt: 'a', aspectRatio: { width: 2, height: 1 } }] },
    },
  })
  await alice.like(old, 'bafyreie5cvv4h45feadgeuwhbcutmh6t2ceseocckahdoe6uat64zmz454')
  const fresh = await alice.getTimeline()
  check(Number(fresh.headers['atproto-upstream-lag']) >= 0, 'how far it is behind')
  same(fresh.headers['atproto-repo-rev'], commit.rev, 'the revision of a completed answer')
  same(fresh.data.feed.map(({ post }) => post.uri), [post.uri, old], 'the timeline at once')
  const [{ post: view }] = fresh.data.feed
  same([view.author.handle, view.author.displayName, view.likeCount], [handle, 'before', 0], 'a new post')
  same(view.embed.record.record.uri, old, 'what it quotes')
  const image = (size) => `https://cdn.example.com/img/${size}/${alice.did}/${picture.data.blob.ref}`
  const [{ thumb, fullsize }] = view.embed.media.images
  same([thumb, fullsize], [image('feed_thumbnail'), image('feed_fullsize')], 'its image')
  same((await alice.getAuthorFeed({ actor: handle })).data.feed.map(({ post }) => post.uri), [post.uri], 'the own feed at once')

  const ref = { uri: old, cid: view.embed.record.record.cid }
  const reply = await alice.post({ text: 'to it', reply: { root: ref, parent: ref } })
  const below = await alice.post({ text: 'to that', reply: { root: ref, parent: reply } })
  const { data: { thread } } = await alice.getPostThread({ uri: old })
  same([thread.replies[0].post.uri, thread.replies[0].replies[0].post.uri], [reply.uri, below.uri], 'replies at once')
  const { data: { thread: own } } = await alice.getPostThread({ uri: below.uri })
  same([own.post.uri, own.parent.post.uri, own.parent.parent.post.uri], [below.uri, reply.uri, old], 'a thread that the AppView does not know')
  await refused(alice.getPostThread({ uri: old.replace('2a', '2b') }), 400, 'NotFound', 'a thread of nobody')

  await alice.upsertProfile((before) => ({ ...before, displayName: 'after', description: 'new' }))
  const { data: me } = await alice.getProfile({ actor: handle })
  same([me.displayName, me.description, me.followersCount], ['after', 'new', 5], 'the profile at once')
  same((await alice.getProfiles({ actors: [alice.did] })).data.profiles[0].displayName, 'after', 'profiles at once')
  const { data: likes } = await alice.getActorLikes({ actor: handle })
  same(likes.feed.map(({ post }) => post.author.displayName), [undefined, 'after'], 'the profile beside what is liked')
})
