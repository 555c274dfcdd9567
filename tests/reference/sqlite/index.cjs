// What the reference server needs of better-sqlite3, on the SQLite that Node has built in. So nothing is compiled, and
// nothing is fetched but packages. Both are one SQLite with the same settings: foreign keys are on, text in double quotes
// is none.
const { DatabaseSync } = require('node:sqlite')

/** Result codes that callers tell apart by name; every other one is `SQLITE_ERROR`. */
const NAMES = new Map([
  [5, 'SQLITE_BUSY'], [261, 'SQLITE_BUSY_RECOVERY'], [517, 'SQLITE_BUSY_SNAPSHOT'], [773, 'SQLITE_BUSY_TIMEOUT'],
  [19, 'SQLITE_CONSTRAINT'], [787, 'SQLITE_CONSTRAINT_FOREIGNKEY'], [1299, 'SQLITE_CONSTRAINT_NOTNULL'],
  [1555, 'SQLITE_CONSTRAINT_PRIMARYKEY'], [2067, 'SQLITE_CONSTRAINT_UNIQUE'],
])

/** Runs something, and names the error as better-sqlite3 does. */
function named(run) {
  try {
    return run()
  } catch (error) {
    if (error?.code === 'ERR_SQLITE_ERROR') error.code = NAMES.get(error.errcode) ?? 'SQLITE_ERROR'
    throw error
  }
}

/** A row as a plain object, with blobs as buffers. */
function plain(row) {
  const entries = Object.entries(row).map(([name, value]) => [name,
    value instanceof Uint8Array ? Buffer.from(value.buffer, value.byteOffset, value.byteLength) : value])
  return Object.fromEntries(entries)
}

/** Parameters come as one list; one that is not there is NULL. */
const bound = (parameters) => parameters.flat(1).map((value) => value ?? null)

class Statement {
  #statement

  constructor(statement) {
    this.#statement = statement
    this.reader = statement.columns().length > 0
  }

  all(...parameters) {
    return named(() => this.#statement.all(...bound(parameters)).map(plain))
  }

  get(...parameters) {
    const row = named(() => this.#statement.get(...bound(parameters)))
    return row && plain(row)
  }

  run(...parameters) {
    return named(() => this.#statement.run(...bound(parameters)))
  }

  *iterate(...parameters) {
    for (const row of this.#statement.iterate(...bound(parameters))) yield plain(row)
  }
}

module.exports = class Database {
  #database

  constructor(path, { timeout = 5000 } = {}) {
    this.#database = named(() => new DatabaseSync(path, { timeout }))
  }

  prepare(sql) {
    return new Statement(named(() => this.#database.prepare(sql)))
  }

  exec(sql) {
    named(() => this.#database.exec(sql))
    return this
  }

  pragma(text) {
    return this.prepare(`PRAGMA ${text}`).all()
  }

  close() {
    if (this.#database.isOpen) this.#database.close()
    return this
  }
}
