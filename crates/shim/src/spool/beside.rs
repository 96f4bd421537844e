//! The thread that packs and writes batches while another reads output.
//!
//! It is made when there is something to do for it; where none can be made, the reader does the work itself.

use std::{
    io,
    sync::mpsc::{Receiver, Sender, channel},
    task::{Context, Poll},
    thread,
};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::writer::{Append, Appended};

/// Executes appends, one at a time.
#[derive(Debug, Default)]
pub struct Beside {
    thread: Option<Thread>,
    is_away: bool,
    /// Whether it was told that there was no thread to be had.
    is_told: bool,
}

#[derive(Debug)]
struct Thread {
    appends: Sender<Append>,
    appended: UnboundedReceiver<Appended>,
}

impl Beside {
    /// Hands an append over, or executes it at once where there is no thread to be had; that is told then.
    pub fn execute(&mut self, append: Append) -> Option<Appended> {
        let thread = match &mut self.thread {
            Some(thread) => thread,
            none => match start() {
                Ok(thread) => none.insert(thread),
                Err(error) => {
                    if !std::mem::replace(&mut self.is_told, true) {
                        tracing::warn!(%error, "no thread can be made for the spool; it is written by the one that reads");
                    }
                    return Some(append.execute());
                }
            },
        };
        match thread.appends.send(append) {
            Ok(()) => {
                self.is_away = true;
                None
            }
            Err(back) => Some(back.0.execute()),
        }
    }

    /// The append that is away, once it was executed; nothing if none is. Fails if the thread has ended with it.
    pub fn poll_appended(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Appended>>> {
        let Some(thread) = self.thread.as_mut().filter(|_| self.is_away) else { return Poll::Ready(None) };
        thread.appended.poll_recv(cx).map(|appended| {
            self.is_away = false;
            Some(appended.ok_or_else(|| io::Error::other("the thread that writes the spool has ended")))
        })
    }
}

fn start() -> io::Result<Thread> {
    let (appends, todo) = channel();
    let (done, appended) = unbounded_channel();
    let of_attempt = tracing::Span::current();
    let work = move || of_attempt.in_scope(|| work(&todo, &done));
    thread::Builder::new().name("spool".to_owned()).spawn(work)?;
    Ok(Thread { appends, appended })
}

/// Until nobody hands anything over, or nobody waits for it, any more.
fn work(todo: &Receiver<Append>, done: &UnboundedSender<Appended>) {
    while let Ok(append) = todo.recv() {
        if done.send(append.execute()).is_err() {
            return;
        }
    }
}
