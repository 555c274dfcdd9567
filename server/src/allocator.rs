//! The allocator of the program: jemalloc, which returns what a burst has left behind. `docs/decisions/0005-allocator.md` has
//! the figures.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Two arenas are enough for a handful of threads, and each keeps memory of its own; pages that stay unused for a second go
/// back to the system, by a thread of the allocator's own. `MALLOC_CONF`, read after this, overrides it.
#[allow(unsafe_code, reason = "jemalloc finds its settings under this symbol")]
// SAFETY: no other symbol has this name, and the bytes are the text with a zero at its end that jemalloc expects.
#[unsafe(export_name = "_rjem_malloc_conf")]
static SETTINGS: &[u8; 70] = b"background_thread:true,narenas:2,dirty_decay_ms:1000,muzzy_decay_ms:0\0";
