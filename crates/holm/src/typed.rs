//! A line of standard input, which is not shown where somebody types it.
//!
//! What always holds: the terminal shows again what is typed on it, whichever way this ends; Ctrl-Z and Ctrl-\, which would
//! leave it as it is, do nothing meanwhile.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _};

use anyhow::Context as _;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::{commands::run::signals::Interrupts, output::Output};

/// Whoever was asked has left instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted; nothing was changed")]
pub struct Interrupted;

/// The next line with its line break, or as much of it as is taken; on a terminal it is asked for and not shown.
pub async fn line(output: Output, prompt: &str, bytes_max: u64) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    if io::stdin().is_terminal() {
        return hidden_line(output, prompt, bytes_max).await;
    }
    read(bytes_max).context("cannot read standard input")
}

async fn hidden_line(output: Output, prompt: &str, bytes_max: u64) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let mut signals = Interrupts::listen()?;
    let _shown_again = Hidden::new(output)?;
    output.stderr_verbatim(prompt);
    tokio::select! {
        line = tokio::task::spawn_blocking(move || read(bytes_max)) => line?.context("cannot read the terminal"),
        () = signals.any() => Err(Interrupted.into()),
    }
}

fn read(bytes_max: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(Vec::with_capacity(usize::try_from(bytes_max).unwrap_or(0)));
    io::stdin().lock().take(bytes_max).read_until(b'\n', &mut line)?;
    Ok(line)
}

/// What is typed is not shown while this lives.
struct Hidden {
    output: Output,
    before: Termios,
}

impl Hidden {
    fn new(output: Output) -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        for key in [SpecialCodeIndex::VSUSP, SpecialCodeIndex::VQUIT] {
            quiet.special_codes[key] = 0;
        }
        tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
        Ok(Self { output, before })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // A terminal that has gone has nothing to be restored.
        let _gone = tcsetattr(io::stdin(), OptionalActions::Flush, &self.before);
        // The line feed that was typed was not shown either.
        self.output.stderr_verbatim("\n");
    }
}
