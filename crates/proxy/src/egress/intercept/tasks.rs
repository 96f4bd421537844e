//! What is done beside, and ends with whom it is done for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::rt::Executor;
use tokio::task::JoinSet;

/// What is done beside.
#[derive(Debug, Clone, Default)]
pub struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    fn set(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `task` beside.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut set = self.set();
        while set.try_join_next().is_some() {}
        set.spawn(task);
    }

    /// Waits until all that was begun has ended.
    pub async fn end(&self) {
        let mut rest = std::mem::take(&mut *self.set());
        while rest.join_next().await.is_some() {}
    }

    /// Ends all that was begun.
    pub async fn stop(&self) {
        let mut rest = std::mem::take(&mut *self.set());
        rest.shutdown().await;
    }
}

impl<Task: Future<Output = ()> + Send + 'static> Executor<Task> for Tasks {
    fn execute(&self, task: Task) {
        self.spawn(task);
    }
}
