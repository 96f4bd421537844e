//! The wire on a virtual machine: the guest that is PID 1 of a `process` sandbox boots under QEMU's microvm machine, speaks the
//! same wire over virtio-serial with the shim's own client, is saved, restored in another QEMU, and goes on in a new epoch.
//!
//! It shows that nothing in wire, guest or shim supposes that both ends share a kernel.

mod machine;

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use holm_domain::run::ExitStatus;
use holm_shim::{
    clock,
    guest::{self, Guest, Lanes, Patience, Readiness, output::Position},
    lane_out,
};
use holm_wire::guest_api::{IdRange, PostRestore, Setup, Spawn};
use machine::{Boot, Machine};
use tokio_util::task::AbortOnDropHandle;

/// Emulation takes its time, and other tests run beside this one.
const READY: Duration = Duration::from_secs(120);
const PATIENCE: Patience = Patience { ready: READY, answer: Duration::from_secs(60) };

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
        _serving: AbortOnDropHandle::new(tokio::spawn(lane_out::serve(requests, refusals))),
    }
}

async fn execute(guest: &Guest, argv: &[&str]) -> (ExitStatus, String) {
    let spawn = Spawn {
        argv: argv.iter().map(|&argument| argument.to_owned()).collect(),
        env: BTreeMap::from([("PATH".to_owned(), "/bin".to_owned())]),
        cwd: Some("/".to_owned()),
        user: "root".to_owned(),
        stdin: false,
    };
    let process = guest.spawn(&spawn).await.unwrap();
    let (mut position, mut said) = (Position::start(process), Vec::new());
    let read = position.read_to_end(guest, async |frame| {
        said.extend_from_slice(&frame.data);
        Ok::<(), Infallible>(())
    });
    read.await.unwrap();
    (guest.exit(process, position.offset()).await.unwrap(), String::from_utf8(said).unwrap())
}

fn setup() -> Setup {
    let ids = IdRange { outer_first: 1, count: 65_536 };
    Setup { hostname: "before".to_owned(), ids, allow_sudo: false, work_dir: None, read_only: Vec::new() }
}

#[tokio::test]
async fn the_same_guest_boots_runs_is_restored_and_runs_again() {
    let dir = tempfile::tempdir().unwrap();
    let (kernel, drivers) = machine::kernel();
    let program = machine::static_program(dir.path());
    let boot = Boot { kernel, initramfs: dir.path().join("init.cpio") };
    let archive = machine::initramfs(holm_runtime::guest::binary(), &program, &drivers);
    std::fs::write(&boot.initramfs, archive).unwrap();
    let (memory, state) = (dir.path().join("memory"), dir.path().join("state"));

    let readiness = Readiness::begin(READY);
    let mut machine = Machine::start(dir.path(), "first", &memory, Some(&boot));
    let speaking = speak(&mut machine, 1, readiness).await;
    speaking.guest.setup(&setup(), readiness).await.unwrap();
    assert_eq!(execute(&speaking.guest, &["true"]).await, (ExitStatus::Code(0), String::new()));
    speaking.guest.quiesce().await.unwrap();
    machine.save(&state);
    drop(speaking);

    let readiness = Readiness::begin(READY);
    let mut machine = Machine::start(dir.path(), "second", &memory, None);
    machine.restore(&state);
    let speaking = speak(&mut machine, 2, readiness).await;
    let renewed =
        PostRestore { unix_micros: clock::unix().0, entropy_hex: "5a".repeat(64), hostname: "after".to_owned() };
    speaking.guest.post_restore(&renewed).await.unwrap();
    let said = execute(&speaking.guest, &["echo", "again", "and", "again"]).await;
    assert_eq!(said, (ExitStatus::Code(0), "again and again\n".to_owned()));
}
