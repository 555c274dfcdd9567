// app-view.mjs --plc <url> --port-file <path>: the services that a server sends requests on to, in one program: an AppView, moderators and
// a chat service. Every request must carry a token that the official library accepts. What it was asked is told in the answer.
import { createServer } from 'node:http'
import { renameSync, writeFileSync } from 'node:fs'
import { verifyJwt } from '@atproto/xrpc-server'
import { args, identities } from './lib.mjs'

const { options } = args()
const { did: dids } = identities(options.plc)
const key = (iss, refresh) => dids.resolveAtprotoKey(iss.split('#')[0], refresh)
const APP_VIEW = 'did:web:api.example.com'
const MODERATORS = 'did:web:mod.example.com'

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
  const nsid = url.pathname.replace('/xrpc/', '')
  const own = nsid.startsWith('chat.') ? chat : nsid.includes('moderation') ? MODERATORS : APP_VIEW
  let token
  try {
    token = await verifyJwt((request.headers.authorization ?? '').replace('Bearer ', ''), own, nsid, key)
  } catch (error) {
    answer(401, { error: error?.customErrorName ?? 'BadJwt', message: String(error?.message) })
    return
  }
  const body = []
  for await (const chunk of request) body.push(chunk)
  const input = Buffer.concat(body).toString()
  const told = { iss: token.iss, lifetime: token.exp - Math.floor(Date.now() / 1000), jti: token.jti, headers: request.headers }
  switch (nsid) {
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
