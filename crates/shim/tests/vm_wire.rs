//! The wire on a virtual machine: the guest that is PID 1 of a `process` sandbox boots under QEMU's microvm machine, speaks
//! the same wire over virtio-serial with the shim's own client, is saved, restored in another QEMU, and goes on in a new
//! epoch.
//!
//! It shows that nothing in wire, guest or shim supposes that both ends share a kernel.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod machine;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use holm_domain::run::ExitStatus;
use holm_shim::{
    guest::{
        self, Guest, Lanes, Patience, Readiness,
        output::{Error, Position},
    },
    lane_out,
};
use holm_wire::guest_api::{IdRange, PostRestore, Setup, Spawn};
use machine::{Boot, Machine};
use tokio_util::task::AbortOnDropHandle;

/// Emulation takes its time, and other tests run beside this one.
const READY: Duration = Duration::from_secs(300);
const PATIENCE: Patience = Patience { ready: READY, answer: Duration::from_secs(120) };

struct Speaking {
    guest: Guest,
    _driver: AbortOnDropHandle<Result<(), h2::Error>>,
    _serving: AbortOnDropHandle<String>,
}

async fn speak(machine: &mut Machine, epoch: u64, readiness: Readiness) -> Speaking {
    let (lane_in, lane_out) = machine.lanes.take().unwrap();
    let (lane_in, lane_out) = (guest::lane(lane_in.into()).unwrap(), guest::lane(lane_out.into()).unwrap());
    let connected = guest::connect(lane_in, lane_out, epoch, readiness, PATIENCE).await;
    let Lanes { guest, driver, requests } = connected.unwrap();
    let (refusals, _) = tokio::sync::mpsc::channel(16);
    Speaking {
        guest,
        _driver: AbortOnDropHandle::new(tokio::spawn(driver)),
        _serving: AbortOnDropHandle::new(tokio::spawn(lane_out::serve(requests, None, refusals))),
    }
}

async fn start(guest: &Guest, script: &str) -> Position {
    let spawn = Spawn {
        argv: ["sh", "-c", script].map(str::to_owned).into(),
        env: BTreeMap::from([("PATH".to_owned(), "/bin".to_owned())]),
        cwd: Some("/".to_owned()),
        user: "root".to_owned(),
        stdin: false,
        main: false,
    };
    Position::start(guest.spawn(&spawn).await.unwrap())
}

/// Reads at least `enough` bytes, or to the end.
async fn read(guest: &Guest, position: &mut Position, enough: usize) -> String {
    let mut said = Vec::new();
    let read = position.read_to_end(guest, async |frame| {
        said.extend_from_slice(&frame.data);
        if said.len() < enough { Ok(()) } else { Err(()) }
    });
    match read.await {
        Ok(()) | Err(Error::Sink(())) => String::from_utf8(said).unwrap(),
        Err(Error::Lost(error)) => panic!("{error}"),
    }
}

/// Runs a script to its end, which has to be a success, for what it says.
async fn execute(guest: &Guest, script: &str) -> String {
    let mut position = start(guest, script).await;
    let said = read(guest, &mut position, usize::MAX).await;
    assert_eq!(guest.exit(position.process(), position.offset()).await.unwrap(), ExitStatus::Code(0), "{script}");
    said
}

fn setup() -> Setup {
    let ids = IdRange { outer_first: 1, count: 65_536 };
    Setup {
        hostname: "before".to_owned(),
        ids,
        allow_sudo: false,
        hidden: None,
        work_dir: None,
        read_only: Vec::new(),
        writes_to_host: false,
        redirect: None,
        trusted: None,
    }
}

/// What no two machines may have in common: a boot's identity, and random bytes.
const UNIQUE: &str = "cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1";
/// More output than a ring holds, so that its writer is waiting while the machine is saved.
const LONG: &str = "seq 1 200000";
/// How much of that is read before.
const READ_BEFORE: usize = 300_000;

/// What goes on across the snapshot.
#[derive(Clone)]
struct UnderWay {
    waiting: Position,
    long: Position,
    long_said: String,
    unique: String,
}

/// The first epoch: commands run, two are under way when all falls silent.
async fn before_the_snapshot(guest: &Guest) -> UnderWay {
    assert_eq!(execute(guest, "true").await, "");
    assert_eq!(execute(guest, "hostname").await, "before\n");
    let unique = execute(guest, UNIQUE).await;
    let mut waiting = start(guest, "echo one; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo two").await;
    assert_eq!(read(guest, &mut waiting, 4).await, "one\n");
    let mut long = start(guest, LONG).await;
    let long_said = read(guest, &mut long, READ_BEFORE).await;
    guest.quiesce().await.unwrap();
    UnderWay { waiting, long, long_said, unique }
}

/// A later epoch, in a clone: everything that has to be new is, and what was under way goes on where it was read to.
async fn after_the_snapshot(guest: &Guest, name: &str, entropy: &str, under_way: UnderWay) -> String {
    // A time at which this test will not run, so that it cannot be right by chance.
    let then = 2_524_608_000;
    let renewed =
        PostRestore { unix_micros: then * 1_000_000, entropy_hex: entropy.repeat(64), hostname: name.to_owned() };
    guest.post_restore(&renewed).await.unwrap();
    assert_eq!(execute(guest, "echo again and again").await, "again and again\n");
    assert_eq!(execute(guest, "hostname").await, format!("{name}\n"));
    let now: i64 = execute(guest, "date +%s").await.trim().parse().unwrap();
    assert!((then..then + 3600).contains(&now), "the clock says {now}");

    let UnderWay { mut waiting, mut long, long_said, .. } = under_way;
    execute(guest, "touch /tmp/go").await;
    assert_eq!(read(guest, &mut waiting, usize::MAX).await, "two\n");
    assert_eq!(guest.exit(waiting.process(), waiting.offset()).await.unwrap(), ExitStatus::Code(0));
    let said = long_said + &read(guest, &mut long, usize::MAX).await;
    assert!(said.lines().map(|line| line.parse().unwrap_or(0)).eq(1..=200_000), "{} bytes of output", said.len());
    assert_eq!(guest.exit(long.process(), long.offset()).await.unwrap(), ExitStatus::Code(0));
    let unique = execute(guest, UNIQUE).await;
    guest.goodbye().await.unwrap();
    unique
}

#[tokio::test]
async fn the_same_guest_boots_runs_is_restored_and_runs_again() {
    let dir = tempfile::tempdir().unwrap();
    let (kernel, drivers) = machine::kernel();
    let boot = Boot { kernel, initramfs: dir.path().join("init.cpio") };
    std::fs::write(&boot.initramfs, machine::initramfs(holm_runtime::guest::binary(), &drivers)).unwrap();
    let (memory, state) = (dir.path().join("memory"), dir.path().join("state"));

    let readiness = Readiness::begin(READY);
    let mut machine = Machine::start(dir.path(), "first", &memory, Some(&boot));
    let speaking = speak(&mut machine, 1, readiness).await;
    speaking.guest.setup(&setup(), readiness).await.unwrap();
    let under_way = before_the_snapshot(&speaking.guest).await;
    machine.save(&state);
    drop(speaking);

    let mut unique = vec![under_way.unique.clone()];
    for (name, entropy) in [("second", "5a"), ("third", "a5")] {
        let readiness = Readiness::begin(READY);
        let mut machine = Machine::start(dir.path(), name, &memory, None);
        machine.restore(&state);
        let speaking = speak(&mut machine, 2, readiness).await;
        unique.push(after_the_snapshot(&speaking.guest, name, entropy, under_way.clone()).await);
        machine.ended();
    }
    let parts: BTreeSet<&str> = unique.iter().flat_map(|said| said.lines()).collect();
    assert_eq!(parts.len(), 6, "shared by clones: {unique:?}");
}
