// verify-repo.mjs <pds-url> <plc-url> [did …]: exports repos (all of listRepos, unless named) and verifies them with
// @atproto/repo: every block's hash, the tree, the signature by the key in the DID document; then the proofs of
// sync.getRecord for records that are there and for one that is not, and getBlocks.
import { readCar, readCarWithRoot, verifyProofs, verifyRepo, cborToLex, MST, MemoryBlockstore } from '@atproto/repo'
import { args, check, download, identities, main, same } from './lib.mjs'

const { words } = args()
const [pds, plc, ...named] = words
/** Proofs asked for in each repo; a big repo has more records than that. */
const PROOFS = 25

async function everyDid() {
  const dids = []
  let cursor
  for (;;) {
    const { body } = await download(pds, 'com.atproto.sync.listRepos', { limit: 100, ...(cursor ? { cursor } : {}) })
    const page = JSON.parse(Buffer.from(body).toString())
    if (page.repos.length === 0) return dids
    dids.push(...page.repos.filter((repo) => repo.active).map((repo) => repo.did))
    cursor = page.cursor
    if (!cursor) return dids
  }
}

async function verify(did, resolver) {
  const data = await resolver.did.resolveAtprotoData(did)
  check(/^https?:\/\//.test(data.pds), `the DID document of ${did} names the PDS ${data.pds}`)
  const key = data.signingKey
  const exported = await download(pds, 'com.atproto.sync.getRepo', { did })
  same(exported.type, 'application/vnd.ipld.car', 'content type of getRepo')
  const { root, blocks } = await readCarWithRoot(exported.body)
  const repo = await verifyRepo(blocks, root, did, key)
  const latest = JSON.parse(Buffer.from((await download(pds, 'com.atproto.sync.getLatestCommit', { did })).body).toString())
  same([root.toString(), repo.commit.rev], [latest.cid, latest.rev], `head of the exported repo ${did}`)

  // Nothing is exported that the commit does not reach.
  const commit = cborToLex(blocks.get(root))
  const tree = MST.load(new MemoryBlockstore(blocks), commit.data)
  const reached = new Set((await tree.allCids()).toList().map(String)).add(root.toString())
  for (const cid of blocks.cids()) check(reached.has(cid.toString()), `getRepo of ${did} carries ${cid}, which its commit does not reach`)
  same(blocks.size, reached.size, `blocks in the export of ${did}`)

  // Proofs of presence, and of absence before, between and after the keys.
  const step = Math.max(1, Math.floor(repo.creates.length / PROOFS))
  const present = repo.creates.filter((_, i) => i % step === 0)
  const claims = present.map(({ collection, rkey, cid }) => ({ collection, rkey, cid }))
  for (const collection of ['aaa.example.first', 'app.bsky.feed.post', 'zzz.example.last']) claims.push({ collection, rkey: 'absent', cid: null })
  for (const claim of claims) {
    const proof = await download(pds, 'com.atproto.sync.getRecord', { did, collection: claim.collection, rkey: claim.rkey })
    const result = await verifyProofs(proof.body, [claim], did, key)
    same(result.unverified.length, 0, `${claim.cid ? 'presence' : 'absence'} of ${claim.collection}/${claim.rkey} is not proven`)
  }

  // getBlocks: exactly what was asked for.
  const wanted = [root, ...present.map((record) => record.cid)].map(String)
  const unique = [...new Set(wanted)].slice(0, 50)
  const some = await readCar((await download(pds, 'com.atproto.sync.getBlocks', { did, cids: unique })).body)
  same(some.roots.length, 0, 'roots of getBlocks')
  same(some.blocks.cids().map(String).toSorted(), unique.toSorted(), 'blocks of getBlocks')

  // Since the newest rev no record changed; since the dawn of time everything did.
  const nothing = await readCarWithRoot((await download(pds, 'com.atproto.sync.getRepo', { did, since: latest.rev })).body)
  for (const { cid } of repo.creates) check(!nothing.blocks.has(cid), `getRepo since the head of ${did} carries the record ${cid}`)
  const all = await readCarWithRoot((await download(pds, 'com.atproto.sync.getRepo', { did, since: '2222222222222' })).body)
  check(blocks.cids().every((cid) => all.blocks.has(cid)), `getRepo since the first rev of ${did} lacks blocks`)
  return { did, records: repo.creates.length, blocks: blocks.size, bytes: exported.body.length }
}

main(async () => {
  check(pds && plc, 'usage: verify-repo.mjs <pds-url> <plc-url> [did …]')
  const resolver = identities(plc)
  const dids = named.length ? named : await everyDid()
  check(dids.length > 0, 'there is no repo to verify')
  for (const did of dids) console.log(JSON.stringify(await verify(did, resolver)))
})
