//! A guest's answers as the shim reads them.
//!
//! The input is a row of answers: a status, how the body ends, and the body. A guest made of it shakes hands as it should
//! and gives one after the other to whatever it is asked. What must hold: every question ends; what the shim takes for true
//! is what the guest said, within its limits; whatever else it said is an error that is fit for people.

use std::{cell::RefCell, rc::Rc, time::Duration};

use holm_domain::{
    limits::{CHANGES_BYTES_MAX, RESULT_BYTES_MAX},
    run::ExitStatus,
};
use holm_shim::{
    guest::{self, ChangesError, CommandResult, Guest, Lanes, Lost, Patience, Readiness, SpawnError, output},
    outcome::{self, Circumstances, Ending},
    protocol::{MESSAGE_BYTES_MAX, UNENFORCED_BYTES_MAX, UNENFORCED_MAX},
};
use holm_wire::{
    guest_api::{IdRange, SendSignal, Setup, Spawn},
    hello::{self, Lane, Limits},
    http2::{self, Exchange, Settings},
};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use crate::{
    input::{Input, piece},
    output::{encoded, whole},
    run,
};

const PATIENCE: Patience = Patience { ready: Duration::from_secs(10), answer: Duration::from_secs(10) };
/// Far more than all deadlines together; no time passes while anything is to be done.
const END: Duration = Duration::from_secs(3_600);
/// The body is ended in order.
const WHOLE: u8 = 0;
/// The body is broken off.
const BROKEN: u8 = 1;
/// The body is left open.
const SILENT: u8 = 2;

/// What the guest says to one request.
#[derive(Debug, Clone)]
struct Said {
    status: u16,
    end: u8,
    body: Vec<u8>,
}

/// Seeds: a guest that does as it should, and such as do not.
pub fn seeds() -> Vec<Vec<u8>> {
    let frame = [&[1, 4, 0, 0, 0][..], b"out\n"].concat();
    let told = json!({"exit": {"code": 0}, "output_bytes": 4});
    let good = [
        (200, json!({"unenforced": ["pids: no cgroup"]}).to_string().into_bytes()),
        (201, json!({"id": 7}).to_string().into_bytes()),
        (200, frame.clone()),
        (200, told.to_string().into_bytes()),
        (200, b"{\"passed\": 3}".to_vec()),
        (200, vec![0; 1024]),
    ];
    let refused = json!({"kind": "not_found", "message": "no \u{1b}[31msuch"}).to_string().into_bytes();
    let killed = json!({"exit": {"signal": 9}, "output_bytes": 0}).to_string().into_bytes();
    let failure = json!({"message": "no"}).to_string().into_bytes();
    let bad = [
        (500, failure),
        (422, refused),
        (200, frame[..7].to_vec()),
        (200, killed),
        (204, Vec::new()),
        (404, Vec::new()),
    ];
    let row = |answers: &[(u16, Vec<u8>)], end: u8| -> Vec<u8> {
        let answer = |(status, body): &(u16, Vec<u8>)| [&status.to_le_bytes()[..], &[end], &piece(body)].concat();
        answers.iter().flat_map(answer).collect()
    };
    vec![row(&good, WHOLE), row(&bad, WHOLE), row(&good, BROKEN), row(&good, SILENT)]
}

/// Has the shim ask everything that it ever asks.
pub fn check(data: &[u8]) {
    run(ask(Input::new(data)));
}

async fn ask(mut input: Input<'_>) {
    let mut answers = Vec::new();
    while !input.is_empty() && answers.len() < 32 {
        answers.push(Said { status: input.number(), end: input.byte(), body: input.piece().to_vec() });
    }
    let (lane_in, their_in) = UnixStream::pair().expect("a lane");
    let (lane_out, their_out) = UnixStream::pair().expect("a lane");
    let given = Rc::new(RefCell::new(Vec::new()));
    let local = tokio::task::LocalSet::new();
    local.spawn_local(answer(their_in, their_out, answers, Rc::clone(&given)));
    let asked = async {
        let Lanes { guest, driver, requests } =
            guest::connect(lane_in, lane_out, 1, Readiness::begin(PATIENCE.ready), PATIENCE).await.expect("both agree");
        let _requests = requests;
        let driver = tokio::task::spawn_local(driver);
        questions(&guest, &given).await;
        driver.abort();
    };
    local.run_until(asked).await;
}

/// The guest: true to the handshake, and then as the input has it.
async fn answer(mut lane_in: UnixStream, mut lane_out: UnixStream, answers: Vec<Said>, given: Rc<RefCell<Vec<Said>>>) {
    hello::guest(&mut lane_in, Lane::In, 0, &Limits::default()).await.expect("a hello");
    hello::guest(&mut lane_out, Lane::Out, 0, &Limits::default()).await.expect("a hello");
    let mut server = http2::accept(lane_in, &Settings::GUEST).await.expect("a client");
    let (_client, driver) = http2::connect(lane_out, &Settings::GUEST).await.expect("a server");
    let driver = tokio::task::spawn_local(driver);
    let mut answers = answers.into_iter();
    // Bodies that are left open stay so.
    let open = Rc::new(RefCell::new(Vec::new()));
    while let Ok(Some(exchange)) = server.next().await {
        let Some(said) = answers.next() else { continue };
        given.borrow_mut().push(said.clone());
        let open = Rc::clone(&open);
        tokio::task::spawn_local(async move {
            // The shim may want no more of it.
            let _refused = say(exchange, said, &open).await;
        });
    }
    driver.abort();
}

async fn say(exchange: Exchange, said: Said, open: &RefCell<Vec<http2::Outgoing>>) -> Result<(), http2::Error> {
    let status = StatusCode::from_u16(said.status).unwrap_or(StatusCode::OK);
    let mut body = exchange.answer.stream(status)?;
    body.send(said.body.into()).await?;
    match said.end {
        BROKEN => {}
        SILENT => open.borrow_mut().push(body),
        _ => body.finish()?,
    }
    Ok(())
}

/// Asks in the order of a run. What the guest said to a question is the last that it gave, and only if there is one more.
async fn questions(guest: &Guest, given: &RefCell<Vec<Said>>) {
    let from = |count: usize| given.borrow().get(count..).unwrap_or_default().to_vec();
    let count = || given.borrow().len();
    let before = count();
    check_setup(guest.setup(&setup(), Readiness::begin(PATIENCE.ready)).await, &from(before));
    let before = count();
    check_spawn(guest.spawn(&spawn()).await, &from(before));
    let before = count();
    let offset = check_output(guest, &|| from(before)).await;
    let before = count();
    check_exit(guest.exit(7, offset).await, offset, &from(before));
    let before = count();
    check_result(guest.result().await, &from(before));
    let before = count();
    check_changes(guest, &|| from(before)).await;
    for ended in [guest.signal(7, SendSignal { signal: 15, all: false }).await, guest.goodbye().await] {
        ended.unwrap_or_else(|lost| is_for_people(&lost.to_string(), MESSAGE_BYTES_MAX));
    }
}

fn setup() -> Setup {
    Setup {
        hostname: "holm".to_owned(),
        ids: IdRange { outer_first: 0, count: 65_536 },
        allow_sudo: false,
        hidden: None,
        work_dir: None,
        read_only: Vec::new(),
        writes_to_host: false,
        redirect: None,
        trusted: None,
    }
}

fn spawn() -> Spawn {
    let argv = vec!["true".to_owned()];
    Spawn { argv, env: Default::default(), cwd: None, user: "root".to_owned(), stdin: false, main: true }
}

fn is_for_people(text: &str, bytes_max: usize) {
    assert!(text.len() <= bytes_max && !text.chars().any(char::is_control), "{text:?}");
}

fn is_lost(lost: &Lost) {
    is_for_people(&lost.to_string(), MESSAGE_BYTES_MAX);
}

/// The JSON of an answer that was given whole and with success.
fn agreed(said: &[Said]) -> Value {
    let [said] = said else { panic!("one question, {} answers", said.len()) };
    let is_success = StatusCode::from_u16(said.status).unwrap_or(StatusCode::OK).is_success();
    assert!(is_success && said.end != BROKEN && said.end != SILENT, "{said:?}");
    serde_json::from_slice(&said.body).expect("what was taken for JSON is JSON")
}

fn check_setup(done: Result<Vec<String>, Lost>, said: &[Said]) {
    match done {
        Err(lost) => is_lost(&lost),
        Ok(unenforced) => {
            let told = agreed(said);
            let told = told["unenforced"].as_array().or(told[0].as_array()).expect("a list");
            assert!(told.len() == unenforced.len() && told.len() <= UNENFORCED_MAX);
            unenforced.iter().for_each(|reason| is_for_people(reason, UNENFORCED_BYTES_MAX));
        }
    }
}

fn check_spawn(done: Result<u32, SpawnError>, said: &[Said]) {
    match done {
        Ok(id) => {
            let told = agreed(said);
            assert!(told["id"] == json!(id) || told[0] == json!(id), "{told}");
        }
        Err(SpawnError::Lost(lost)) => is_lost(&lost),
        Err(SpawnError::Refused(failure)) => {
            assert_eq!(said.last().map(|said| said.status), Some(422));
            let outcome = outcome::classify(Ending::NotSpawned(failure), Circumstances::default());
            is_for_people(&outcome.message.expect("a reason"), MESSAGE_BYTES_MAX);
        }
    }
}

/// Reads the output to its end; returns how much was read.
async fn check_output(guest: &Guest, said: &dyn Fn() -> Vec<Said>) -> u64 {
    let mut position = output::Position::start(7);
    let mut taken = Vec::new();
    let reading = position.read_to_end(guest, async |frame| {
        assert!(!frame.data.is_empty());
        taken.extend(encoded(&frame));
        Ok::<(), std::convert::Infallible>(())
    });
    let read = tokio::time::timeout(END, reading).await;
    let said = said();
    // Each stream begins where the one before broke: what was taken is the whole frames of each, in order. Answers to
    // acknowledgements may lie between.
    let mut rest = &taken[..];
    for said in &said {
        rest = rest.strip_prefix(&said.body[..frames(&said.body)]).unwrap_or(rest);
    }
    assert!(rest.is_empty() || said.iter().any(|said| said.body.starts_with(rest)), "nothing is made up");
    match read {
        // A command may be quiet for as long as it likes.
        Err(_) => assert!(said.iter().any(|said| said.end == SILENT), "nothing keeps the output open"),
        Ok(Ok(())) => {
            let last = said.iter().rfind(|said| frames(&said.body) == said.body.len()).expect("a stream that ended");
            assert!(last.end != BROKEN && last.end != SILENT);
        }
        Ok(Err(output::Error::Lost(lost))) => is_lost(&lost),
    }
    position.offset()
}

/// The length of the whole frames at the front.
fn frames(bytes: &[u8]) -> usize {
    let mut length = 0;
    while let Some(frame) = whole(&bytes[length..]) {
        length += frame;
    }
    length
}

fn check_exit(done: Result<ExitStatus, Lost>, offset: u64, said: &[Said]) {
    match done {
        Err(lost) => is_lost(&lost),
        Ok(exit) => {
            let told = agreed(said);
            let (told_exit, told_bytes) =
                if told.is_array() { (&told[0], &told[1]) } else { (&told["exit"], &told["output_bytes"]) };
            assert_eq!(*told_bytes, json!(offset));
            match exit {
                ExitStatus::Code(code) => assert_eq!(told_exit["code"], json!(code)),
                ExitStatus::Signal(signal) => {
                    assert!((1..=64).contains(&signal));
                    assert_eq!(told_exit["signal"], json!(signal));
                }
            }
        }
    }
}

fn check_result(done: Result<CommandResult, Lost>, said: &[Said]) {
    match done {
        Err(lost) => is_lost(&lost),
        Ok(CommandResult::None) => assert_eq!(said.last().map(|said| said.status), Some(204)),
        Ok(CommandResult::Refused(problem)) => is_for_people(&problem, MESSAGE_BYTES_MAX),
        Ok(CommandResult::Json(value)) => {
            assert!(value.to_string().len() <= RESULT_BYTES_MAX);
            assert_eq!(agreed(said), value);
            let again: Value = serde_json::from_str(&value.to_string()).expect("JSON");
            assert_eq!(again, value, "what is passed on is what was read");
        }
    }
}

async fn check_changes(guest: &Guest, said: &dyn Fn() -> Vec<Said>) {
    let mut taken = Vec::new();
    let read = async {
        let mut changes = guest.changes(CHANGES_BYTES_MAX, PATIENCE.answer).await?;
        while let Some(piece) = changes.next().await? {
            taken.extend_from_slice(&piece);
        }
        Ok::<(), ChangesError>(())
    };
    match read.await {
        Err(ChangesError::Lost(lost)) => is_lost(&lost),
        Err(ChangesError::Refused(why)) => {
            is_for_people(&why, MESSAGE_BYTES_MAX);
            assert_eq!(said().last().map(|said| said.status), Some(422));
        }
        Ok(()) => {
            let said = said();
            assert!(matches!(&said[..], [said] if said.body == taken && said.end != BROKEN && said.end != SILENT));
        }
    }
}
