// methods.mjs: what the methods of this server take, as the fuzzer of the tests reads it (tests/methods.json): from the table in
// server/src/xrpc/mod.rs and the lexicons of the client library. Run it when a method is added, and commit what it writes.
import { readFileSync, writeFileSync } from 'node:fs'
import { schemas } from '@atproto/api'

const table = readFileSync(new URL('../../server/src/xrpc/mod.rs', import.meta.url), 'utf8')
const names = [...table.matchAll(/^ +"([a-z]+\.[A-Za-z.]+)" (?:Query|Procedure) /gm)].map((found) => found[1])
const documents = new Map(schemas.map((document) => [document.id, document.defs]))
const defs = {}

/** A schema without what nobody has to keep to, and with whole names. */
function compact(schema, home) {
  if (schema === null || typeof schema !== 'object') return schema
  if (Array.isArray(schema)) return schema.map((one) => compact(one, home))
  if (schema.type === 'ref') return { ref: define(schema.ref, home) }
  if (schema.type === 'union') return { union: schema.refs.map((ref) => define(ref, home)) }
  const kept = {}
  for (const [name, value] of Object.entries(schema)) {
    if (['description', 'default', 'errors', 'output', 'nullable'].includes(name) && typeof value !== 'object') continue
    if (['errors', 'output', 'nullable'].includes(name)) continue
    kept[name] = compact(value, home)
  }
  return kept
}

/** The whole name of a definition, which is put beside the methods. */
function define(ref, home) {
  const [id, name = 'main'] = ref.replace(/^lex:/, '').split('#')
  const whole = `${id || home}#${name}`
  if (!(whole in defs)) {
    defs[whole] = null
    const found = documents.get(id || home)?.[name]
    if (!found) throw new Error(`${whole} is not known`)
    defs[whole] = compact(found.type === 'record' ? found.record : found, id || home)
  }
  return whole
}

const methods = Object.fromEntries(names.toSorted().map((name) => {
  const main = documents.get(name)?.main
  if (!main) throw new Error(`${name} is not known`)
  const { type, parameters, input } = compact(main, name)
  return [name, { type, parameters, input }]
}))
const lines = (values) => Object.entries(values).toSorted(([a], [b]) => (a < b ? -1 : 1))
  .map(([name, value]) => `${JSON.stringify(name)}: ${JSON.stringify(value)}`).join(',\n')
writeFileSync(new URL('../methods.json', import.meta.url), `{\n"methods": {\n${lines(methods)}\n},\n"definitions": {\n${lines(defs)}\n}\n}\n`)
console.log(`${names.length} methods, ${Object.keys(defs).length} definitions`)
