//! The spool of one attempt: where output is taken in, and the agent's acknowledgements.
//!
//! What always holds: output that was taken is written in its order, at the latest when its time has come; while there is no
//! room, none is taken, so that the command waits, whether it is the spool that is full or the disk below it, which is
//! waited for as long as [`FullDisk`] says. What writes may be dropped at any time and called again: what was begun goes on.

use std::{
    cell::{Cell, RefCell},
    io,
    path::Path,
    rc::Rc,
};

use holm_domain::{BootMicros, log::Stream};
use tokio::sync::Notify;

use super::{
    beside::Beside,
    writer::{Append, Appended, TakenBack, Writer},
};
use crate::{clock, full_disk::FullDisk};

/// The writer of a spool with the thread that helps it.
#[derive(Debug)]
pub struct Keeper {
    writer: RefCell<Writer>,
    beside: RefCell<Beside>,
    pushed: Notify,
    has_room: Notify,
    full_disk: Rc<FullDisk>,
    /// When it is tried again to write what found no room on the disk.
    again_at: Cell<Option<BootMicros>>,
}

impl Keeper {
    /// An empty spool in `dir`, whose first entry has the sequence `first_seq`; it takes about `bytes_max` bytes of the disk
    /// at most.
    pub fn create(dir: &Path, first_seq: u64, bytes_max: u64, full_disk: Rc<FullDisk>) -> io::Result<Self> {
        Ok(Self {
            writer: RefCell::new(Writer::create(dir, first_seq, bytes_max)?),
            beside: RefCell::default(),
            pushed: Notify::new(),
            has_room: Notify::new(),
            full_disk,
            again_at: Cell::default(),
        })
    }

    /// The sequence of the next entry that is written.
    pub fn next_seq(&self) -> u64 {
        self.writer.borrow().next_seq()
    }

    /// Whether there is room for more.
    pub fn has_room(&self) -> bool {
        self.writer.borrow().has_room()
    }

    /// Waits until there is room for more.
    pub async fn room(&self) {
        loop {
            let room = self.has_room.notified();
            if self.has_room() {
                return;
            }
            room.await;
        }
    }

    /// Takes a piece of output.
    pub fn push(&self, stream: Stream, data: &[u8]) -> io::Result<()> {
        self.writer.borrow_mut().push(stream, data, clock::now())?;
        self.pushed.notify_one();
        Ok(())
    }

    /// Takes a note on the run.
    pub fn note(&self, data: &[u8]) -> io::Result<()> {
        self.writer.borrow_mut().note(data, clock::now())?;
        self.pushed.notify_one();
        Ok(())
    }

    /// Writes what has waited for long enough, and says so each time; returns only when that fails.
    pub async fn keep(&self, written: impl Fn()) -> io::Error {
        loop {
            let due = self.writer.borrow().next_tick();
            tokio::select! {
                () = clock::sleep_until(due) => {}
                () = self.pushed.notified() => {}
            }
            if let Err(error) = self.write(&written).await {
                return error;
            }
        }
    }

    /// Writes everything: the output has ended.
    pub async fn end(&self, written: impl Fn()) -> io::Result<()> {
        self.writer.borrow_mut().end(clock::now())?;
        self.write(&written).await
    }

    /// The agent has everything before `next_seq`: it need not be here any longer.
    pub fn acked(&self, next_seq: u64) {
        self.writer.borrow_mut().acked(next_seq);
        self.make_room();
    }

    /// Writes batch after batch until none is due, what takes long on a thread of its own.
    async fn write(&self, written: &impl Fn()) -> io::Result<()> {
        loop {
            let appended = std::future::poll_fn(|cx| self.beside.borrow_mut().poll_appended(cx)).await;
            if let Some(appended) = appended {
                self.take_back(appended?, written)?;
            }
            let now = clock::now();
            // Also while output never pauses, the beginning of a line is held back no longer than it may be.
            self.writer.borrow_mut().tick(now)?;
            let Some(append) = self.next_append(now.boot).await else { return Ok(()) };
            self.has_room.notify_waiters();
            let executed =
                if append.is_long() { self.beside.borrow_mut().execute(append) } else { Some(append.execute()) };
            if let Some(appended) = executed {
                self.take_back(appended, written)?;
            }
        }
    }

    /// The append that is due; on a disk that was full, not before it is worth another try.
    async fn next_append(&self, now: BootMicros) -> Option<Append> {
        if let Some(again_at) = self.again_at.get() {
            clock::sleep_until(Some(again_at)).await;
        }
        self.writer.borrow_mut().append(now)
    }

    fn take_back(&self, appended: Appended, written: &impl Fn()) -> io::Result<()> {
        let taken = self.writer.borrow_mut().take_back(appended)?;
        self.make_room();
        match taken {
            TakenBack::Written => {
                if self.again_at.take().is_some() {
                    self.full_disk.has_room_for_output(clock::boot());
                }
                written();
            }
            TakenBack::NoRoom(error) => {
                let again_at = self.full_disk.no_room(clock::boot()).ok_or(error)?;
                self.again_at.set(Some(again_at));
            }
        }
        Ok(())
    }

    fn make_room(&self) {
        if let Err(error) = self.writer.borrow_mut().delete_acked() {
            // Nothing is lost by it: the files are in the way until the attempt's folder goes.
            tracing::warn!(%error, "acknowledged log files cannot be deleted");
        }
        self.has_room.notify_waiters();
    }
}
