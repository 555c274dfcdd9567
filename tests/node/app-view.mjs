// app-view.mjs --plc <url> --port-file <path>: the services that a server sends requests on to, in one program: an AppView, moderators and
// a chat service. Every request must carry a token that the official library accepts. What it was asked is told in the answer.
// POST /stage {rev, did, handle}: from now on the AppView knows that account up to that rev, and nothing newer.
import { createServer } from 'node:http'
import { renameSync, writeFileSync } from 'node:fs'
import { verifyJwt } from '@atproto/xrpc-server'
import { args, identities } from './lib.mjs'

const { options } = args()
const { did: dids } = identities(options.plc)
const key = (iss, refresh) => dids.resolveAtprotoKey(iss.split('#')[0], refresh)
const APP_VIEW = 'did:web:api.example.com'
const GENERATOR = 'did:web:feeds.example.com'
const MODERATORS = 'did:web:mod.example.com'

/** What the AppView knows of an account, if it was told so. */
let staged
const OLD = 'at://did:plc:aaaaaaaaaaaaaaaaaaaaaaaa/app.bsky.feed.post/3kaaaaaaaaa2a'
const oldPost = () => ({
  uri: OLD, cid: 'bafyreie5cvv4h45feadgeuwhbcutmh6t2ceseocckahdoe6uat64zmz454', indexedAt: '2024-01-01T00:00:00.000Z',
  author: { did: 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa', handle: 'somebody.example.com' },
  record: { $type: 'app.bsky.feed.post', text: 'old', createdAt: '2024-01-01T00:00:00.000Z' }, likeCount: 1,
})
const profile = () => ({ did: staged.did, handle: staged.handle, displayName: 'before', followersCount: 5 })

/** The views of an AppView that stands still. */
function behind(nsid, query) {
  const thread = (post) => ({ $type: 'app.bsky.feed.defs#threadViewPost', post, replies: [] })
  switch (nsid) {
    case 'app.bsky.feed.getTimeline':
      return { feed: [{ post: oldPost() }], cursor: 'next' }
    case 'app.bsky.feed.getAuthorFeed':
      return { feed: [] }
    case 'app.bsky.feed.getActorLikes':
      return { feed: [{ post: oldPost() }, { post: { ...oldPost(), author: profile() } }] }
    case 'app.bsky.feed.getPostThread':
      return query.get('uri') === OLD ? { thread: thread(oldPost()) } : undefined
    case 'app.bsky.feed.getPosts':
      return { posts: query.getAll('uris').filter((uri) => uri === OLD).map(oldPost) }
    case 'app.bsky.actor.getProfile':
      return profile()
    case 'app.bsky.actor.getProfiles':
      return { profiles: [profile()] }
  }
}

const server = createServer(async (request, response) => {
  const chat = `did:web:localhost%3A${server.address().port}`
  const answer = (status, body, headers = {}) => {
    response.writeHead(status, { 'content-type': 'application/json', ...headers })
    response.end(request.method === 'HEAD' ? undefined : JSON.stringify(body))
  }
  const url = new URL(request.url, 'http://here')
  if (url.pathname === '/.well-known/did.json') {
    const endpoint = `http://localhost:${server.address().port}`
    answer(200, { id: chat, service: [{ id: '#bsky_chat', type: 'BskyChatService', serviceEndpoint: endpoint }] })
    return
  }
  if (url.pathname === '/stage') {
    const told = []
    for await (const chunk of request) told.push(chunk)
    staged = JSON.parse(Buffer.concat(told).toString())
    answer(200, {})
    return
  }
  const nsid = url.pathname.replace('/xrpc/', '')
  const own = nsid.startsWith('chat.') ? chat : nsid.includes('moderation') ? MODERATORS : APP_VIEW
  if (nsid === 'com.atproto.repo.getRecord') {
    const { authorization } = request.headers
    answer(authorization ? 400 : 200, authorization ? { error: 'WithCredentials', message: 'why?' } : { uri: OLD, cid: oldPost().cid, value: oldPost().record })
    return
  }
  // A feed is asked for with the generator's token.
  const [audience, method] = nsid === 'app.bsky.feed.getFeed' ? [GENERATOR, 'app.bsky.feed.getFeedSkeleton'] : [own, nsid]
  let token
  try {
    token = await verifyJwt((request.headers.authorization ?? '').replace('Bearer ', ''), audience, method, key)
  } catch (error) {
    answer(401, { error: error?.customErrorName ?? 'BadJwt', message: String(error?.message) })
    return
  }
  const body = []
  for await (const chunk of request) body.push(chunk)
  const input = Buffer.concat(body).toString()
  const told = { iss: token.iss, lifetime: token.exp - Math.floor(Date.now() / 1000), jti: token.jti, headers: request.headers }
  if (staged) {
    const view = behind(nsid, url.searchParams)
    if (view || nsid === 'app.bsky.feed.getPostThread') {
      const unknown = { error: 'NotFound', message: 'Post not found' }
      answer(view ? 200 : 400, view ?? unknown, { 'atproto-repo-rev': staged.rev })
      return
    }
  }
  switch (nsid) {
    case 'app.bsky.feed.getFeedGenerator':
      answer(200, {
        isOnline: true, isValid: true,
        view: {
          uri: url.searchParams.get('feed'), cid: oldPost().cid, did: GENERATOR, creator: oldPost().author, displayName: 'a feed',
          indexedAt: oldPost().indexedAt,
        },
      })
      break
    case 'app.bsky.feed.getFeed':
      answer(200, { feed: [{ post: oldPost() }] })
      break
    case 'app.bsky.notification.registerPush':
      answer(200, { got: input })
      break
    case 'app.bsky.feed.getTimeline':
      answer(200, { feed: [], cursor: JSON.stringify(told) }, {
        'atproto-repo-rev': '3kabc', 'atproto-content-labelers': 'did:plc:ar7c4by46qjdydhdevvrndac', 'set-cookie': 'a=b',
      })
      break
    case 'com.atproto.moderation.createReport':
      answer(200, { id: 7, ...JSON.parse(input), reportedBy: token.iss, createdAt: new Date().toISOString() })
      break
    case 'chat.bsky.convo.listConvos':
      answer(200, { convos: [], cursor: token.iss })
      break
    case 'app.bsky.graph.muteActor':
      answer(200, { got: input })
      break
    case 'app.bsky.feed.getFeedSkeleton':
      answer(400, { error: 'UnknownFeed', message: 'no such feed' })
      break
    default:
      answer(500, { error: 'InternalServerError', message: 'a mistake' })
  }
})
server.listen(0, 'localhost', () => {
  // The file appears with its content.
  writeFileSync(`${options['port-file']}.new`, String(server.address().port))
  renameSync(`${options['port-file']}.new`, options['port-file'])
})
