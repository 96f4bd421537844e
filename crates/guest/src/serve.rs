//! One epoch after the other: handshakes, HTTP/2 on both lanes, and the silence between.

use std::{io, pin::pin, rc::Rc, task::Poll, time::Duration};

use holm_wire::{
    hello::{self, HelloError, Limits},
    http2::{self, Answer, Exchange, Server, Settings},
};
use http::{Method, StatusCode};
use tokio::task::JoinSet;

use crate::{
    api::{self, Guest},
    lane::{Gate, Lane, LaneIo},
    machine::Machine,
};

/// How long to wait for the host, at the start and after a quiesce; in a machine, while it runs.
const HELLO_LIMITS: Limits = Limits { deadline: Duration::from_secs(600), stale_bytes_max: 64 * 1024 * 1024 };
/// How often a port without a host behind it is tried again.
const PORT_RETRY: Duration = Duration::from_millis(5);
/// How long the last answer of an epoch may take to leave.
const LAST_ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Why an epoch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Quiesced,
    Goodbye,
    Lost,
}

/// Serves until the host says goodbye or, in process mode, is gone.
pub async fn run(machine: Machine, lane_in: Lane, lane_out: Lane, guest: Rc<Guest>) -> io::Result<()> {
    guest.machine.set(Some(machine));
    let mut epoch_min = 0;
    loop {
        let greeted = tokio::try_join!(
            greet(machine, &lane_in, hello::Lane::In, epoch_min),
            greet(machine, &lane_out, hello::Lane::Out, epoch_min)
        );
        let (epoch_in, epoch_out) = greeted.map_err(|error| io::Error::other(error.to_string()))?;
        epoch_min = epoch_in.max(epoch_out);
        if epoch_in != epoch_out {
            // The host opened its lanes for different epochs; only the later one can be meant.
            continue;
        }
        epoch_min += 1;
        match epoch(&lane_in, &lane_out, &guest).await {
            End::Goodbye => return Ok(()),
            // With the other end of a socket pair gone there is no one left to serve.
            End::Lost if machine == Machine::Process => return Ok(()),
            End::Lost | End::Quiesced => {}
        }
    }
}

/// Waits for the host's hello. A virtio port reads as ended while no host is behind it, as after a restore.
async fn greet(machine: Machine, lane: &Lane, name: hello::Lane, epoch_min: u64) -> Result<u64, HelloError> {
    loop {
        let (mut io, _gate) = lane.open();
        match hello::guest(&mut io, name, epoch_min, &HELLO_LIMITS).await {
            Ok(hello) => return Ok(hello.epoch),
            Err(HelloError::Closed | HelloError::Io(_)) if machine == Machine::Virtual => {
                tokio::time::sleep(PORT_RETRY).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Serves one epoch.
async fn epoch(lane_in: &Lane, lane_out: &Lane, guest: &Rc<Guest>) -> End {
    let (io_in, gate_in) = lane_in.open();
    let (io_out, gate_out) = lane_out.open();
    let mut tasks = JoinSet::new();
    let (refusals, names) = (guest.refusals.clone(), guest.names.clone());
    tasks.spawn_local(async move {
        if let Ok((client, driver)) = http2::connect(io_out, &Settings::GUEST).await {
            names.set_host(Some(client.clone()));
            // Whichever ends first: without its connection there is nothing to tell through.
            tokio::select! {
                _ = driver => {}
                () = refusals.tell(client) => {}
            }
            names.set_host(None);
        }
    });
    let Ok(mut server) = http2::accept(io_in, &Settings::GUEST).await else { return End::Lost };
    loop {
        let exchange = tokio::select! {
            next = server.next() => match next {
                Ok(Some(exchange)) => exchange,
                Ok(None) | Err(_) => return End::Lost,
            },
            Some(_) = tasks.join_next() => continue,
        };
        let Some(end) = last_request(&exchange) else {
            tasks.spawn_local(api::answer(guest.clone(), exchange));
            continue;
        };
        gate_out.close();
        gate_in.close_reads();
        tasks.shutdown().await;
        say_last(&mut server, &gate_in, exchange.answer).await;
        gate_in.close();
        return end;
    }
}

fn last_request(exchange: &Exchange) -> Option<End> {
    match (&exchange.head.method, exchange.head.uri.path()) {
        (&Method::POST, "/quiesce") => Some(End::Quiesced),
        (&Method::POST, "/goodbye") => Some(End::Goodbye),
        _ => None,
    }
}

/// Answers, and waits until the answer has left for the lane.
async fn say_last(server: &mut Server<LaneIo>, gate: &Gate, answer: Answer) {
    if answer.empty(StatusCode::NO_CONTENT).is_err() {
        return;
    }
    let sent = std::future::poll_fn(|context| {
        gate.take_write_blocked();
        // The connection flushes all it has whenever it is polled; if no write had to wait, all has left.
        match pin!(server.next()).poll(context) {
            Poll::Pending if gate.take_write_blocked() => Poll::Pending,
            Poll::Ready(Ok(Some(_))) => {
                // A request that came in before: it is dropped, which resets it.
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending | Poll::Ready(_) => Poll::Ready(()),
        }
    });
    // A host that does not read has no use for the answer.
    let _ = tokio::time::timeout(LAST_ANSWER_DEADLINE, sent).await;
}
