//! What the shim tells of the run: refused connections and refused results, in a file of bounded length.
//!
//! A sandbox decides how often it tries to reach something, so what it causes is limited ([`Refusals`], pure): the first
//! attempt at a destination is told at once, further ones as a count, ever less often; beyond [`DESTINATIONS_MAX`]
//! destinations all others are one count under the host `*`. Texts from inside are cut down to harmless characters.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use holm_domain::{
    BootMicros,
    run::{EventKind, REFUSED_PROTOCOLS},
};
use holm_wire::host_api::Refused;

use crate::{
    protocol::{EVENTS_FILE_NAME, EVENTS_MAX, SourceEvent},
    spool::writer::is_no_room,
};

/// How many destinations are told of one by one.
pub const DESTINATIONS_MAX: usize = 256;
/// How many of them may be requests: each path is another, and those are not to hide where connections were to go.
const REQUESTS_MAX: usize = 64;
/// How long further attempts at a destination are counted before they are told of for the first time; doubled every time.
pub const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// Stands for all destinations that were too many to be told apart, the guest's as well as the shim's.
const MANY_HOSTS: &str = "*";
/// The longest name of a host, in bytes (RFC 1035 §2.3.4).
const HOST_BYTES_MAX: usize = 255;
/// How many characters of a reason are told.
const REASON_CHARS_MAX: usize = 300;
/// What is left free for the last counts of every destination and of all others, for the refusal of a result, and for a
/// sandbox that does not die.
const EVENTS_RESERVED: u64 = DESTINATIONS_MAX as u64 + 3;

/// The file of events. It is made with the first one: most runs have none. Events for which the disk has no room wait in
/// memory.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: Option<File>,
    written: u64,
    /// What is left of lines that are not in the file as a whole.
    unwritten: VecDeque<Vec<u8>>,
}

impl EventFile {
    /// The file in the attempt's folder.
    pub fn new(run_dir: &Path) -> Self {
        Self { path: run_dir.join(EVENTS_FILE_NAME), file: None, written: 0, unwritten: VecDeque::new() }
    }

    /// How many events are in the file.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Whether there is room beside what is reserved for the last counts.
    pub fn has_room(&self) -> bool {
        self.told() + EVENTS_RESERVED < EVENTS_MAX
    }

    /// How many events were told and are not in the file.
    pub fn unwritten(&self) -> u64 {
        self.unwritten.len() as u64
    }

    fn told(&self) -> u64 {
        self.written + self.unwritten()
    }

    /// Tells an event, and those that wait before it, as far as the disk has room; returns whether none waits any more.
    pub fn append(&mut self, event: EventKind) -> io::Result<bool> {
        if self.told() >= EVENTS_MAX {
            return Err(io::Error::other("the file of events is full"));
        }
        let mut line = serde_json::to_vec(&SourceEvent { seq: self.told() + 1, event })?;
        line.push(b'\n');
        self.unwritten.push_back(line);
        self.flush()
    }

    /// Writes the events that wait; returns whether none does any more.
    pub fn flush(&mut self) -> io::Result<bool> {
        while let Some(line) = self.unwritten.front_mut() {
            match open(&mut self.file, &self.path).and_then(|file| file.write(line)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                // A line that is there in part is finished later; until then readers leave it alone.
                Ok(count) if count < line.len() => drop(line.drain(..count)),
                Ok(_) => {
                    self.unwritten.pop_front();
                    self.written += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_no_room(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

fn open<'a>(file: &'a mut Option<File>, path: &Path) -> io::Result<&'a mut File> {
    match file {
        Some(file) => Ok(file),
        none => Ok(none.insert(File::options().append(true).create_new(true).mode(0o600).open(path)?)),
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Destination {
    host: String,
    port: u16,
    protocol: &'static str,
    reason: Option<String>,
}

#[derive(Debug)]
struct Counted {
    untold: u64,
    tell_at: BootMicros,
    pause: Duration,
}

/// Counts what was refused, and says when it is to be told.
#[derive(Debug, Default)]
pub struct Refusals {
    destinations: BTreeMap<Destination, Counted>,
    others: u64,
    /// How many of the destinations are requests.
    requests: usize,
}

impl Refusals {
    /// Counts an attempt, which came to nothing for `reason` where that is not that no rule names it. Returns the event that is to
    /// be told now, if one is; `may_tell` says whether there is room.
    pub fn count(
        &mut self,
        refused: &Refused,
        reason: Option<String>,
        may_tell: bool,
        now: BootMicros,
    ) -> Option<EventKind> {
        let protocol = REFUSED_PROTOCOLS.into_iter().find(|known| *known == refused.protocol)?;
        let reason = reason.map(|reason| tame_reason(&reason));
        let destination = Destination { host: tame(&refused.host), port: refused.port, protocol, reason };
        let attempts = refused.count.max(1);
        if let Some(counted) = self.destinations.get_mut(&destination) {
            counted.untold = counted.untold.saturating_add(attempts);
            if now < counted.tell_at || !may_tell {
                return None;
            }
            counted.pause *= 2;
            counted.tell_at = now.plus(counted.pause);
            return Some(told(&destination, std::mem::take(&mut counted.untold)));
        }
        let is_one_of_many = protocol == "http" && self.requests >= REQUESTS_MAX;
        if self.destinations.len() >= DESTINATIONS_MAX || is_one_of_many || !may_tell {
            self.others = self.others.saturating_add(attempts);
            return None;
        }
        let event = told(&destination, attempts);
        self.requests += usize::from(protocol == "http");
        let counted = Counted { untold: 0, tell_at: now.plus(FIRST_PAUSE), pause: FIRST_PAUSE };
        self.destinations.insert(destination, counted);
        Some(event)
    }

    /// The last counts; at most [`DESTINATIONS_MAX`] and one.
    pub fn finish(self) -> Vec<EventKind> {
        let untold = self.destinations.iter().filter(|(_, counted)| counted.untold > 0);
        let mut events: Vec<EventKind> = untold.map(|(to, counted)| told(to, counted.untold)).collect();
        if self.others > 0 {
            let many = Destination { host: MANY_HOSTS.to_owned(), port: 0, protocol: "tcp", reason: None };
            events.push(told(&many, self.others));
        }
        events
    }
}

fn told(to: &Destination, count: u64) -> EventKind {
    let Destination { host, port, protocol, reason } = to.clone();
    EventKind::EgressRefused { host, port, protocol: protocol.to_owned(), count, reason }
}

/// Names and addresses need no other characters; whoever reads an event in a terminal is not to be tricked.
fn tame(host: &str) -> String {
    if host == MANY_HOSTS {
        return host.to_owned();
    }
    let harmless = |char: char| char.is_ascii_alphanumeric() || ".-_:[]%".contains(char);
    host.chars().take(HOST_BYTES_MAX).map(|char| if harmless(char) { char } else { '?' }).collect()
}

/// A reason may have what a client asked for in it.
fn tame_reason(reason: &str) -> String {
    let harmless = |char: char| char.is_ascii_graphic() || char == ' ';
    reason.chars().take(REASON_CHARS_MAX).map(|char| if harmless(char) { char } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(host: &str, port: u16, count: u64) -> Refused {
        Refused { host: host.to_owned(), port, protocol: "tcp".to_owned(), count }
    }

    fn counts(event: Option<EventKind>) -> Option<(String, u64)> {
        match event {
            Some(EventKind::EgressRefused { host, count, .. }) => Some((host, count)),
            _ => None,
        }
    }

    #[test]
    fn the_first_attempt_is_told_at_once_and_the_others_as_a_count() {
        let (mut refusals, start) = (Refusals::default(), BootMicros(5));
        let one = refused("10.0.0.1", 80, 1);
        assert_eq!(counts(refusals.count(&one, None, true, start)), Some(("10.0.0.1".into(), 1)));
        assert_eq!(refusals.count(&one, None, true, start), None);
        assert_eq!(refusals.count(&refused("10.0.0.1", 80, 5), None, true, start), None);
        let later = start.plus(FIRST_PAUSE);
        assert_eq!(counts(refusals.count(&one, None, true, later)), Some(("10.0.0.1".into(), 7)));
        assert_eq!(refusals.count(&one, None, true, later.plus(FIRST_PAUSE)), None, "the pause has doubled");
        assert_eq!(refusals.finish().len(), 1);
    }

    #[test]
    fn texts_are_tamed_and_protocols_known() {
        let mut refusals = Refusals::default();
        let nasty = refused("evil\u{1b}[2J\n.example", 1, 1);
        assert_eq!(counts(refusals.count(&nasty, None, true, BootMicros(0))), Some(("evil?[2J?.example".into(), 1)));
        let why = Some(format!("GET /\u{1b}[2J\u{9b}x{}", "y".repeat(1_000)));
        let Some(EventKind::EgressRefused { reason: Some(reason), .. }) =
            refusals.count(&nasty, why, true, BootMicros(0))
        else {
            panic!("another reason is told by itself")
        };
        assert!(reason.starts_with("GET /?[2J?xy") && reason.len() == REASON_CHARS_MAX, "{reason}");
        let unknown = Refused { protocol: "icmp".into(), ..nasty };
        assert_eq!(refusals.count(&unknown, None, true, BootMicros(0)), None);
    }

    #[test]
    fn many_requests_hide_no_connection() {
        let mut refusals = Refusals::default();
        let request = Refused { protocol: "http".into(), ..refused("a", 443, 1) };
        for path in 0..DESTINATIONS_MAX * 2 {
            let told = refusals.count(&request, Some(format!("GET /{path}")), true, BootMicros(0));
            assert_eq!(told.is_some(), path < REQUESTS_MAX);
        }
        assert_eq!(counts(refusals.count(&refused("b", 443, 1), None, true, BootMicros(0))), Some(("b".into(), 1)));
    }

    #[test]
    fn what_was_too_much_for_the_guest_has_the_same_name() {
        let mut refusals = Refusals::default();
        assert_eq!(counts(refusals.count(&refused("*", 0, 3), None, true, BootMicros(0))), Some(("*".into(), 3)));
        assert_eq!(counts(refusals.count(&refused("*.x", 0, 1), None, true, BootMicros(0))), Some(("?.x".into(), 1)));
    }

    proptest! {
        #[test]
        fn no_flood_fills_the_file_and_no_attempt_is_forgotten(attempts in prop::collection::vec((0u16..400, 0u64..5, 0u64..20_000_000), 1..3_000)) {
            let dir = tempfile::tempdir().unwrap();
            let mut file = EventFile::new(dir.path());
            let (mut refusals, mut now, mut made) = (Refusals::default(), BootMicros(0), 0);
            for (port, count, pause) in attempts {
                now = BootMicros(now.0 + pause);
                made += count.max(1);
                if let Some(event) = refusals.count(&refused("h", port, count), None, file.has_room(), now) {
                    file.append(event).unwrap();
                }
            }
            for event in refusals.finish() {
                file.append(event).unwrap();
            }
            file.append(EventKind::ResultRefused { problem: "there is still room".into() }).unwrap();
            let events = crate::client::read_events(dir.path(), 0, usize::MAX).unwrap();
            prop_assert_eq!(events.len() as u64, file.written());
            let told: u64 = events.into_iter().filter_map(|event| counts(Some(event))).map(|(_, count)| count).sum();
            prop_assert_eq!(told, made);
        }
    }
}
