//! Cuts the bytes of two streams into what goes into a batch: whole lines, as many as came together, and pieces of lines that
//! are long or slow.
//!
//! What always holds: the pieces of a stream put one after the other are exactly its bytes; none is empty or longer than
//! [`ENTRY_BYTES_MAX`]; a line is never divided but where it is long or slow; at most as much of each stream is held back.
//! Time is an argument.

use std::time::Duration;

use holm_domain::{
    BootMicros,
    log::{ENTRY_BYTES_MAX, Stream},
};

/// How long the beginning of a line is held back before it is told as a piece.
pub const LINE_HELD_FOR: Duration = Duration::from_millis(50);

/// Lines, each with its line feed, or a piece of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Which stream it is of.
    pub stream: Stream,
    /// Whether it is a piece of a line that goes on.
    pub partial: bool,
    /// The bytes.
    pub data: &'a [u8],
}

/// The beginning of a line of one stream that is held back.
#[derive(Debug, Default)]
struct Held {
    bytes: Vec<u8>,
    since: BootMicros,
}

/// Cuts two streams into whole lines and pieces of lines.
#[derive(Debug, Default)]
pub struct Cutter {
    stdout: Held,
    stderr: Held,
}

impl Cutter {
    /// Takes bytes that arrived at `now`; hands every finished piece to `emit`, and stops at its first error.
    pub fn push<E>(
        &mut self,
        stream: Stream,
        mut data: &[u8],
        now: BootMicros,
        mut emit: impl FnMut(Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let held = self.held(stream);
        while !data.is_empty() {
            let room = ENTRY_BYTES_MAX - held.bytes.len();
            let window = &data[..data.len().min(room)];
            // What is held back is ended by the first line feed; otherwise all lines go at once.
            let find = if held.bytes.is_empty() { memchr::memrchr } else { memchr::memchr };
            let line = find(b'\n', window).map(|at| at + 1);
            let taken = line.unwrap_or(window.len());
            let ends = line.is_some() || taken == room;
            if held.bytes.is_empty() && ends {
                emit(Piece { stream, partial: line.is_none(), data: &data[..taken] })?;
            } else {
                if held.bytes.is_empty() {
                    held.since = now;
                }
                held.bytes.extend_from_slice(&data[..taken]);
                if ends {
                    emit(Piece { stream, partial: line.is_none(), data: &held.bytes })?;
                    held.bytes.clear();
                }
            }
            data = &data[taken..];
        }
        Ok(())
    }

    /// When [`Cutter::tick`] is due next.
    pub fn next_tick(&self) -> Option<BootMicros> {
        let held = [&self.stdout, &self.stderr].into_iter().filter(|held| !held.bytes.is_empty());
        held.map(|held| held.since.plus(LINE_HELD_FOR)).min()
    }

    /// Hands out the beginnings of lines that were held back for long enough.
    pub fn tick<E>(&mut self, now: BootMicros, emit: impl FnMut(Piece<'_>) -> Result<(), E>) -> Result<(), E> {
        self.flush(true, |held| now >= held.since.plus(LINE_HELD_FOR), emit)
    }

    /// Hands out whatever is left: the streams have ended.
    pub fn finish<E>(&mut self, emit: impl FnMut(Piece<'_>) -> Result<(), E>) -> Result<(), E> {
        self.flush(false, |_| true, emit)
    }

    fn flush<E>(
        &mut self,
        partial: bool,
        due: impl Fn(&Held) -> bool,
        mut emit: impl FnMut(Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let held = self.held(stream);
            if !held.bytes.is_empty() && due(held) {
                emit(Piece { stream, partial, data: &held.bytes })?;
                held.bytes.clear();
            }
        }
        Ok(())
    }

    fn held(&mut self, stream: Stream) -> &mut Held {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    type Cut = (Stream, bool, Vec<u8>);

    fn collect(cuts: &mut Vec<Cut>) -> impl FnMut(Piece<'_>) -> Result<(), Infallible> {
        |piece| {
            cuts.push((piece.stream, piece.partial, piece.data.to_vec()));
            Ok(())
        }
    }

    fn cut(writes: &[(Stream, &[u8])]) -> Vec<Cut> {
        let (mut cutter, mut cuts) = (Cutter::default(), Vec::new());
        for (stream, data) in writes {
            let Ok(()) = cutter.push(*stream, data, BootMicros(0), collect(&mut cuts));
        }
        let Ok(()) = cutter.finish(collect(&mut cuts));
        cuts
    }

    #[test]
    fn lines_are_whole_and_keep_their_line_feed() {
        let writes: [(Stream, &[u8]); 3] =
            [(Stream::Stdout, b"a\n\nb"), (Stream::Stderr, b"err"), (Stream::Stdout, b"c\r\nrest")];
        let expected: [(Stream, bool, &[u8]); 4] = [
            (Stream::Stdout, false, b"a\n\n"),
            (Stream::Stdout, false, b"bc\r\n"),
            (Stream::Stdout, false, b"rest"),
            (Stream::Stderr, false, b"err"),
        ];
        assert_eq!(cut(&writes), expected.map(|(stream, partial, data)| (stream, partial, data.to_vec())));
    }

    #[test]
    fn a_long_line_is_cut_and_one_that_just_fits_is_not() {
        let lengths = |bytes: &[u8]| -> Vec<(bool, usize)> {
            cut(&[(Stream::Stdout, bytes)]).iter().map(|(_, partial, data)| (*partial, data.len())).collect()
        };
        let mut fits = vec![b'x'; ENTRY_BYTES_MAX - 1];
        fits.push(b'\n');
        assert_eq!(lengths(&fits), [(false, ENTRY_BYTES_MAX)]);
        let mut long = vec![b'x'; ENTRY_BYTES_MAX];
        long.push(b'\n');
        assert_eq!(lengths(&long), [(true, ENTRY_BYTES_MAX), (false, 1)]);
        // However many lines there are before it.
        let mut late = vec![b'\n'; 100];
        late.extend_from_slice(&long);
        assert_eq!(lengths(&late), [(false, 100), (true, ENTRY_BYTES_MAX), (false, 1)]);
    }

    #[test]
    fn a_slow_line_is_told_in_pieces() {
        let (mut cutter, mut cuts) = (Cutter::default(), Vec::new());
        let Ok(()) = cutter.push(Stream::Stdout, b"50 %", BootMicros(10), collect(&mut cuts));
        let due = BootMicros(10).plus(LINE_HELD_FOR);
        assert_eq!(cutter.next_tick(), Some(due));
        let Ok(()) = cutter.tick(BootMicros(due.0 - 1), collect(&mut cuts));
        assert_eq!(cuts, []);
        let Ok(()) = cutter.tick(due, collect(&mut cuts));
        assert_eq!(cuts, [(Stream::Stdout, true, b"50 %".to_vec())]);
        assert_eq!(cutter.next_tick(), None);
        let Ok(()) = cutter.push(Stream::Stdout, b"\n", due, collect(&mut cuts));
        assert_eq!(cuts[1], (Stream::Stdout, false, b"\n".to_vec()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn nothing_is_changed_lost_or_held_too_long(
            writes in prop::collection::vec((any::<bool>(), prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..100), 1usize..300, any::<bool>()), 1..12)
        ) {
            let (mut cutter, mut cuts, mut written) = (Cutter::default(), Vec::new(), [Vec::new(), Vec::new()]);
            for (index, (stderr, data, repeat, tick)) in writes.iter().enumerate() {
                let (stream, data, now) = (if *stderr { Stream::Stderr } else { Stream::Stdout }, data.repeat(*repeat), BootMicros(index as u64 * 20_000));
                written[usize::from(*stderr)].extend_from_slice(&data);
                let Ok(()) = cutter.push(stream, &data, now, collect(&mut cuts));
                if *tick {
                    let Ok(()) = cutter.tick(now, collect(&mut cuts));
                    prop_assert!(cutter.next_tick().is_none_or(|at| at > now));
                }
            }
            let Ok(()) = cutter.finish(collect(&mut cuts));
            for (stream, bytes) in [(Stream::Stdout, &written[0]), (Stream::Stderr, &written[1])] {
                let joined: Vec<u8> = cuts.iter().filter(|cut| cut.0 == stream).flat_map(|cut| cut.2.clone()).collect();
                prop_assert_eq!(&joined, bytes);
            }
            for (_, partial, data) in &cuts {
                prop_assert!(!data.is_empty() && data.len() <= ENTRY_BYTES_MAX);
                prop_assert!(!data.contains(&b'\n') || (data.ends_with(b"\n") && !partial));
            }
        }
    }
}
