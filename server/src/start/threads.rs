//! The threads of the firehose, apart from those of the requests.

use super::ServerError;

/// What is sent to a thousand subscribers stands back behind the commit that they will hear of next.
const FIREHOSE_NICENESS: i32 = 5;

/// The threads of the firehose. They end with this, without being waited for: their work is all in the log.
pub(super) struct FirehoseThreads(Option<tokio::runtime::Runtime>, tokio::runtime::Handle);

impl FirehoseThreads {
    pub(super) fn new() -> Result<FirehoseThreads, ServerError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads((cores / 2).clamp(1, 8))
            .max_blocking_threads(8)
            .thread_name("firehose")
            .on_thread_start(|| {
                // A system that does not allow it shares evenly.
                let _evenly = rustix::process::setpriority_process(None, FIREHOSE_NICENESS);
            })
            .enable_all()
            .build()
            .map_err(|error| ServerError::io("the firehose's threads", error))?;
        let handle = runtime.handle().clone();
        Ok(FirehoseThreads(Some(runtime), handle))
    }

    pub(super) fn handle(&self) -> tokio::runtime::Handle {
        self.1.clone()
    }
}

impl Drop for FirehoseThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
