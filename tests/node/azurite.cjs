// azurite.cjs <options>: the emulator of Azure Blob Storage without its sweep for data that no blob names. With ten thousand objects
// that takes minutes, every ten minutes, in which it answers nothing.
const constants = require('azurite/dist/src/blob/utils/constants')

// The longest time that a timer takes: 24 days.
constants.DEFAULT_GC_INTERVAL_MS = 2 ** 31 - 1
require('azurite/dist/src/blob/main')
