//! Spans on their way to collectors that take them, refuse them or hang.

use std::{
    num::{NonZeroU64, NonZeroU128},
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use holm_domain::UnixMicros;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse},
    trace::v1::{ResourceSpans, status::StatusCode},
};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{settings::tests::read, *};

/// What a collector does with requests.
#[derive(Debug, Clone, Copy)]
enum Manner {
    Takes,
    /// A status and further lines of the head.
    Refuses(&'static str),
    /// The same for the first request only.
    RefusesFirst(&'static str),
    RefusesSome,
    Hangs,
    /// It takes them and never comes to the end of its answer.
    Endless,
    /// The same, as fast as it can.
    Floods,
}

#[derive(Debug, Default)]
struct Received {
    requests: AtomicUsize,
    spans: Mutex<Vec<ResourceSpans>>,
    heads: Mutex<Vec<String>>,
}

/// A collector, and where it is.
async fn collector(manner: Manner) -> (Arc<Received>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let received = Arc::<Received>::default();
    let all = Arc::clone(&received);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, manner, Arc::clone(&all)));
        }
    });
    (received, url)
}

async fn answer(mut stream: tokio::net::TcpStream, manner: Manner, received: Arc<Received>) -> Option<()> {
    let mut bytes = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            stream.read_buf(&mut bytes).await.ok().filter(|count| *count > 0)?;
        };
        let head = String::from_utf8(bytes.drain(..end).collect()).unwrap().to_lowercase();
        let length: usize = head.split("content-length: ").nth(1)?.lines().next()?.parse().ok()?;
        while bytes.len() < length {
            stream.read_buf(&mut bytes).await.ok().filter(|count| *count > 0)?;
        }
        let body: Vec<u8> = bytes.drain(..length).collect();
        let is_first = received.requests.fetch_add(1, Ordering::SeqCst) == 0;
        received.heads.lock().unwrap().push(head);
        let (status, answer) = match manner {
            Manner::Hangs => std::future::pending().await,
            Manner::Refuses(status) => (status, Vec::new()),
            Manner::RefusesFirst(status) if is_first => (status, Vec::new()),
            Manner::Endless => return drip(&mut stream).await,
            Manner::Floods => return flood(&mut stream).await,
            Manner::Takes | Manner::RefusesFirst(_) | Manner::RefusesSome => {
                let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
                received.spans.lock().unwrap().extend(request.resource_spans);
                let rejected_spans = i64::from(matches!(manner, Manner::RefusesSome));
                let partly = ExportTracePartialSuccess { rejected_spans, error_message: "no".to_owned() };
                ("200 OK", ExportTraceServiceResponse { partial_success: Some(partly) }.encode_to_vec())
            }
        };
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", answer.len());
        stream.write_all(&[head.as_bytes(), &answer].concat()).await.ok()?;
    }
}

/// An answer of which a byte comes now and then.
async fn drip(stream: &mut tokio::net::TcpStream) -> Option<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n").await.ok()?;
    loop {
        stream.write_all(b"\n").await.ok()?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// An answer whose end never comes, however much of it does.
async fn flood(stream: &mut tokio::net::TcpStream) -> Option<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n").await.ok()?;
    loop {
        stream.write_all(&[b'\n'; 64 * 1024]).await.ok()?;
    }
}

fn tracer(url: &str) -> Tracer {
    tracer_with(url, ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=hunter2"))
}

fn tracer_with(url: &str, variable: (&'static str, &str)) -> Tracer {
    let settings = read(&[(settings::ENDPOINT, url), variable]);
    Tracer::start(settings.unwrap().unwrap()).unwrap()
}

/// Waits until something has become of that many spans.
async fn until_settled(tracer: &Tracer, spans: u64) -> Counts {
    let begun = Instant::now();
    loop {
        let counts = tracer.counts();
        if counts.sent + counts.failed >= spans {
            return counts;
        }
        assert!(begun.elapsed() < WITHIN, "{counts:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn context(span: u64) -> TraceContext {
    let trace = TraceId::new(NonZeroU128::new(7).unwrap());
    TraceContext { trace, span: SpanId::new(NonZeroU64::new(span).unwrap()), is_sampled: true }
}

fn span(part: Part, id: u64) -> Span {
    let during = Interval::new(UnixMicros(1_000), UnixMicros(2_500));
    Span::new(part, "did", context(id), Some(context(9).span), during)
}

const WITHIN: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn spans_arrive_as_they_were_told() {
    let (received, url) = collector(Manner::Takes).await;
    let tracer = tracer(&url);
    tracer.tell(span(Part::Agent, 1).with("holm.run", "run_1").failed("host_failed"));
    tracer.tell(span(Part::Guest, 2).answering());
    assert_eq!(tracer.end(WITHIN).await, 0);
    assert_eq!(tracer.counts(), Counts { sent: 2, dropped: 0, failed: 0 });
    let head = received.heads.lock().unwrap()[0].clone();
    assert!(head.starts_with("post /v1/traces http/1.1") && head.contains("x-key: hunter2"), "{head}");
    assert!(head.contains("content-type: application/x-protobuf"), "{head}");
    let received = received.spans.lock().unwrap();
    let [of_agent, of_guest] = &received[..] else { panic!("{received:?}") };
    let scope = &of_agent.scope_spans[0];
    assert_eq!(scope.scope.as_ref().unwrap().name, "holm.agent");
    let told = &scope.spans[0];
    assert_eq!((told.trace_id[15], told.span_id[7], told.parent_span_id[7]), (7, 1, 9));
    assert_eq!((told.start_time_unix_nano, told.end_time_unix_nano), (1_000_000, 2_500_000));
    assert_eq!(told.status.as_ref().unwrap().code(), StatusCode::Error);
    let names: Vec<_> = told.attributes.iter().map(|pair| pair.key.as_str()).collect();
    assert_eq!(names, ["holm.run", "error.type"]);
    assert_eq!(of_guest.scope_spans[0].spans[0].status, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_collector_does_not_take_is_counted() {
    for (manner, sent) in
        [(Manner::Refuses("400 Bad Request"), 0), (Manner::Refuses("503 Busy"), 0), (Manner::RefusesSome, 1)]
    {
        let (received, url) = collector(manner).await;
        let tracer = tracer(&url);
        tracer.tell(span(Part::Cli, 1));
        tracer.tell(span(Part::Cli, 2));
        assert_eq!(tracer.end(WITHIN).await, 2 - sent, "{manner:?}");
        assert_eq!(tracer.counts(), Counts { sent, dropped: 0, failed: 2 - sent }, "{manner:?}");
        // At the end nothing is waited for.
        assert_eq!(received.requests.load(Ordering::SeqCst), 1, "{manner:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_for_now_is_sent_once_more_and_what_is_refused_for_good_is_not() {
    let (elsewhere, other) = collector(Manner::Takes).await;
    let to_other: &'static str = format!("307 Temporary Redirect\r\nlocation: {other}/v1/traces").leak();
    for (manner, requests, sent) in [
        (Manner::RefusesFirst("503 Busy"), 2, 1),
        (Manner::RefusesFirst("429 Too Many Requests\r\nretry-after: 2"), 2, 1),
        (Manner::RefusesFirst("400 Bad Request"), 1, 0),
        (Manner::RefusesFirst(to_other), 1, 0),
    ] {
        let (received, url) = collector(manner).await;
        let (tracer, begun) = (tracer(&url), Instant::now());
        tracer.tell(span(Part::Cli, 1));
        let counts = until_settled(&tracer, 1).await;
        let took = begun.elapsed();
        assert_eq!(counts, Counts { sent, dropped: 0, failed: 1 - sent }, "{manner:?}");
        // What was lost before the end is not lost at it.
        assert_eq!(tracer.end(WITHIN).await, 0, "{manner:?}");
        assert_eq!(received.requests.load(Ordering::SeqCst), requests, "{manner:?}");
        let asks = matches!(manner, Manner::RefusesFirst(head) if head.contains("retry-after"));
        assert!(!asks || took >= Duration::from_secs(2), "it was asked to wait, and took {took:?}");
    }
    assert_eq!(elsewhere.requests.load(Ordering::SeqCst), 0, "spans go where they were to go");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_an_end_is_not_read_for_ever() {
    let (received, url) = collector(Manner::Endless).await;
    let tracer = tracer_with(&url, ("OTEL_EXPORTER_OTLP_TIMEOUT", "500"));
    for count in 1..=2 {
        tracer.tell(span(Part::Cli, 1));
        assert_eq!(until_settled(&tracer, count).await, Counts { sent: count, dropped: 0, failed: 0 });
    }
    assert_eq!(received.requests.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_answer_that_is_too_long_a_part_is_read() {
    let (received, url) = collector(Manner::Floods).await;
    let (tracer, begun) = (tracer_with(&url, ("OTEL_EXPORTER_OTLP_TIMEOUT", "60000")), Instant::now());
    for count in 1..=2 {
        tracer.tell(span(Part::Cli, 1));
        assert_eq!(until_settled(&tracer, count).await, Counts { sent: count, dropped: 0, failed: 0 });
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "not until the time of a request is over");
    assert_eq!(received.requests.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_encrypted_is_however_the_url_is_written() {
    for scheme in ["https", "HTTPS", " Https"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tracer = tracer(&format!("{scheme}://{} ", listener.local_addr().unwrap()));
        tracer.tell(span(Part::Cli, 1));
        let mut first = [0; 6];
        listener.accept().await.unwrap().0.read_exact(&mut first).await.unwrap();
        // A record of TLS with a handshake, in it a hello (RFC 8446, 4 and 5.1).
        assert_eq!((first[0], first[5]), (22, 1), "{scheme}: {first:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_of_the_request_is_there_once() {
    let (received, url) = collector(Manner::Takes).await;
    let tracer = tracer_with(&url, ("OTEL_EXPORTER_OTLP_HEADERS", "content-type=text/plain,user-agent=other"));
    tracer.tell(span(Part::Cli, 1));
    assert_eq!(tracer.end(WITHIN).await, 0);
    let head = received.heads.lock().unwrap()[0].clone();
    assert_eq!(head.matches("content-type: ").count(), 1, "{head}");
    assert_eq!(head.matches("user-agent: ").count(), 1, "{head}");
    assert!(head.contains("content-type: application/x-protobuf"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_sends_any_more_is_counted() {
    // The thread is gone, in whatever way.
    let (tracer, spans) = Tracer::in_memory();
    tracer.tell(span(Part::Cli, 1));
    drop((spans, CloseOnDrop(Arc::clone(&tracer.inner.as_ref().unwrap().book))));
    assert_eq!(tracer.counts(), Counts { sent: 0, dropped: 0, failed: 1 });
    let take = || tracer.inner.as_ref().unwrap().take(span(Part::Cli, 1));
    assert_eq!((take().is_some(), take().is_some()), (true, false), "it is told once");
    assert_eq!(tracer.counts(), Counts { sent: 0, dropped: 2, failed: 1 });
    // It is there still, and was given up at the end.
    let (tracer, _spans) = Tracer::in_memory();
    let inner = tracer.inner.as_ref().unwrap();
    inner.ending.cancel();
    inner.book.close();
    assert_eq!(inner.take(span(Part::Cli, 1)), None, "at the end it is no news");
    assert_eq!(tracer.counts(), Counts { sent: 0, dropped: 1, failed: 0 });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_cannot_be_spoken_to_costs_spans_only() {
    let settings = read(&[(settings::ENDPOINT, "https://127.0.0.1:9")]).unwrap().unwrap();
    let begun = Instant::now();
    let tracer = Tracer::start(settings).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "no certificate is read before there is a span");
    tracer.tell(span(Part::Cli, 1));
    assert_eq!(tracer.end(WITHIN).await, 1);
    assert_eq!(tracer.counts(), Counts { sent: 0, dropped: 0, failed: 1 });
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_collector_that_hangs() {
    let (received, url) = collector(Manner::Hangs).await;
    let tracer = tracer(&url);
    tracer.tell(span(Part::Cli, 1));
    while received.requests.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let told = Instant::now();
    for _ in 0..QUEUE_MAX + 10 {
        tracer.tell(span(Part::Cli, 1));
    }
    assert!(told.elapsed() < Duration::from_secs(2));
    assert_eq!(tracer.counts(), Counts { sent: 0, dropped: 10, failed: 0 });
    let begun = Instant::now();
    // Those that waited, and the one that was on its way.
    let waiting = QUEUE_MAX as u64 + 1;
    assert_eq!(tracer.end(Duration::from_millis(50)).await, waiting);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(tracer.counts(), Counts { sent: 0, dropped: 10, failed: waiting });
    tracer.tell(span(Part::Cli, 1));
    assert_eq!(tracer.counts().dropped, 11, "nothing more is taken");
    assert_eq!(tracer.end(WITHIN).await, 0, "it has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_there_is_nothing() {
    let tracer = Tracer::default();
    assert!(!tracer.is_on() && tracer.begin(None).is_none() && tracer.within(Some(context(1))).is_none());
    tracer.tell(span(Part::Cli, 1));
    assert_eq!(tracer.end(Duration::ZERO).await, 0);
    assert_eq!(tracer.counts(), Counts::default());
}

#[tokio::test]
async fn what_is_recorded_is_decided_where_a_trace_begins() {
    let tracer = tracer("http://127.0.0.1:9");
    let root = tracer.begin(None).unwrap();
    assert!(root.is_sampled && tracer.begin(None).unwrap().trace != root.trace);
    let child = tracer.within(Some(root)).unwrap();
    assert!(child.trace == root.trace && child.span != root.span);
    let unsampled = TraceContext { is_sampled: false, ..root };
    assert!(!tracer.begin(Some(unsampled)).unwrap().is_sampled);
    assert_eq!(tracer.within(Some(unsampled)), None);
}

#[test]
fn spans_are_bounded() {
    let large = (0..20).fold(span(Part::Cli, 1), |span, _| span.with("holm.run", "ü".repeat(1_000)));
    assert_eq!(large.attributes.len(), ATTRIBUTES_MAX);
    assert!(large.attributes.iter().all(|(_, value)| value.len() <= VALUE_BYTES_MAX));
}
