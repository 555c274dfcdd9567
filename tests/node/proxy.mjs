// proxy.mjs <pds-url> --plc <url> --chat <did>: what an app asks of services that stand behind its server (app-view.mjs).
import { AtpAgent, BSKY_LABELER_DID } from '@atproto/api'
import { args, check, main, refused, same } from './lib.mjs'

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
})
