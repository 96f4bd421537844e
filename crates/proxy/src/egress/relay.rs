//! Bytes from one side to the other, both ways, until both have ended.
//!
//! What always holds: what one side has said reaches the other also where that has said all it will, or takes no more; where
//! either breaks off, the other hears no end.

use std::{
    io,
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use holm_domain::egress::name::HostName;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::watch,
};

use super::{
    Refusal,
    greeting::{self, Unfit},
};

/// How many bytes are under way in one direction at most.
const BUFFER_BYTES: usize = 16 * 1024;
/// After how many bytes others get their turn: a bulk copy must not hold up small requests.
const TURN_BYTES: usize = 128 * 1024;
/// How long one direction goes on without a byte after the other has ended.
const HALF_OPEN_MAX: Duration = Duration::from_secs(300);

/// How many bytes went each way so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// From the sandbox.
    pub sent: AtomicU64,
    /// To the sandbox.
    pub received: AtomicU64,
}

impl Counts {
    /// From the sandbox, and to it.
    pub fn get(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed))
    }
}

/// Why one direction ended before its end.
#[derive(Debug)]
enum Broke {
    /// Who sends broke off.
    From,
    /// Who is sent to takes no more.
    To,
    /// What the client sends is not fit to be passed on.
    Unfit(Refusal),
}

impl From<Unfit> for Broke {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::OtherName => Self::Unfit(Refusal::OtherName),
            Unfit::Malformed => Self::Unfit(Refusal::Malformed),
            Unfit::Io(_) => Self::From,
        }
    }
}

impl From<Broke> for Refusal {
    fn from(broke: Broke) -> Self {
        match broke {
            Broke::From | Broke::To => Self::BrokenOff,
            Broke::Unfit(refusal) => refusal,
        }
    }
}

/// What a server answered first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answered {
    NotYet,
    GreetAgain,
    Otherwise,
}

/// How far each direction is, for the other.
#[derive(Debug)]
struct Progress {
    answered: watch::Sender<Answered>,
    ended: watch::Sender<bool>,
}

/// Passes on what `inside` and `outside` send, and that they have ended, until both have or one breaks off. Where `inside` asked
/// for `name`, how it begins is looked at. Once nobody is left inside, which `is_last` says, what it sent is passed on and nothing
/// else is waited for.
pub async fn relay<Inside, Outside>(
    inside: Inside,
    outside: Outside,
    name: Option<&HostName>,
    counts: &Counts,
    mut is_last: watch::Receiver<bool>,
) -> Result<(), Refusal>
where
    Inside: AsyncRead + AsyncWrite + Unpin,
    Outside: AsyncRead + AsyncWrite + Unpin,
{
    let (inside_read, inside_write) = tokio::io::split(inside);
    let (outside_read, outside_write) = tokio::io::split(outside);
    let progress = Progress { answered: watch::Sender::new(Answered::NotYet), ended: watch::Sender::new(false) };
    let mut up = pin!(up(inside_read, outside_write, name, &counts.sent, &progress));
    let mut down = pin!(down(outside_read, inside_write, name, &counts.received, &progress));
    tokio::select! {
        sent = &mut up => match sent {
            Ok(()) => tokio::select! {
                received = down => Ok(received?),
                Ok(_) = is_last.wait_for(|is_last| *is_last) => Ok(()),
            },
            // It may have answered before, to something of which it did not want to hear the end.
            Err(Broke::To) => {
                let _broken_off_in_any_case = down.await;
                Err(Refusal::BrokenOff)
            }
            Err(broke) => Err(broke.into()),
        },
        received = &mut down => {
            received?;
            Ok(up.await?)
        }
    }
}

/// What the client sends.
async fn up(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    name: Option<&HostName>,
    count: &AtomicU64,
    progress: &Progress,
) -> Result<(), Broke> {
    if let Some(name) = name {
        let mut greeting = greeting::first(&mut from, name).await?;
        pass(&greeting.bytes, &mut to, count, progress).await?;
        let mut answered = progress.answered.subscribe();
        if greeting.is_tls
            && let Ok(answer) = answered.wait_for(|answered| *answered != Answered::NotYet).await.map(|answer| *answer)
            && answer == Answered::GreetAgain
        {
            greeting = greeting::second(&mut from, greeting.rest, name).await?;
            pass(&greeting.bytes, &mut to, count, progress).await?;
        }
        pass(&greeting.rest, &mut to, count, progress).await?;
    }
    pump(from, to, count, progress).await
}

/// What the server sends.
async fn down(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    name: Option<&HostName>,
    count: &AtomicU64,
    progress: &Progress,
) -> Result<(), Broke> {
    if name.is_some() {
        let answer = greeting::answer(&mut from).await.map_err(|_| Broke::From)?;
        // Before the client hears of it.
        progress.answered.send_replace(if answer.greet_again { Answered::GreetAgain } else { Answered::Otherwise });
        pass(&answer.bytes, &mut to, count, progress).await?;
    }
    pump(from, to, count, progress).await
}

async fn pass(
    bytes: &[u8],
    to: &mut (impl AsyncWrite + Unpin),
    count: &AtomicU64,
    progress: &Progress,
) -> Result<(), Broke> {
    if to.write_all(bytes).await.is_err() {
        progress.ended.send_replace(true);
        return Err(Broke::To);
    }
    count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    Ok(())
}

/// One direction, to its end.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    count: &AtomicU64,
    progress: &Progress,
) -> Result<(), Broke> {
    let (mut buffer, mut turn) = (vec![0; BUFFER_BYTES], 0);
    loop {
        let length = next(&mut from, &mut buffer, &progress.ended).await.map_err(|_| Broke::From)?;
        if length == 0 {
            break;
        }
        pass(&buffer[..length], &mut to, count, progress).await?;
        turn += length;
        if turn >= TURN_BYTES {
            turn = 0;
            tokio::task::yield_now().await;
        }
    }
    progress.ended.send_replace(true);
    to.shutdown().await.map_err(|_| Broke::To)
}

/// What comes next; where the other direction has ended, it is not waited for for ever.
async fn next(
    from: &mut (impl AsyncRead + Unpin),
    buffer: &mut [u8],
    ended: &watch::Sender<bool>,
) -> io::Result<usize> {
    let mut other = ended.subscribe();
    let half_open = async {
        if other.wait_for(|ended| *ended).await.is_ok() {
            tokio::time::sleep(HALF_OPEN_MAX).await;
        }
    };
    tokio::select! {
        biased;
        read = from.read(buffer) => read,
        () = half_open => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody is left inside, all the while.
    fn running() -> watch::Receiver<bool> {
        watch::Sender::new(false).subscribe()
    }

    #[tokio::test]
    async fn each_side_hears_all_that_the_other_says_and_that_it_ended() {
        let (mut client, inside) = tokio::io::duplex(1_000);
        let (mut server, outside) = tokio::io::duplex(1_000);
        let counts = Counts::default();
        let (question, answer) = (vec![1_u8; 300_000], vec![2_u8; 500_000]);
        let asking = async {
            let (mut read, mut write) = tokio::io::split(&mut client);
            write.write_all(&question).await.unwrap();
            write.shutdown().await.unwrap();
            let mut heard = Vec::new();
            read.read_to_end(&mut heard).await.unwrap();
            heard
        };
        let answering = async {
            let (mut read, mut write) = tokio::io::split(&mut server);
            let mut heard = Vec::new();
            read.read_to_end(&mut heard).await.unwrap();
            // Only once the question has ended: half of the connection is open until now.
            write.write_all(&answer).await.unwrap();
            write.shutdown().await.unwrap();
            heard
        };
        let (relayed, heard, asked) = tokio::join!(relay(inside, outside, None, &counts, running()), asking, answering);
        relayed.unwrap();
        assert!(asked == question && heard == answer);
        assert_eq!((counts.sent.into_inner(), counts.received.into_inner()), (300_000, 500_000));
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_connection_is_not_kept_for_ever() {
        let (mut client, inside) = tokio::io::duplex(1_000);
        let (server, outside) = tokio::io::duplex(1_000);
        client.shutdown().await.unwrap();
        let begun = tokio::time::Instant::now();
        let relayed = relay(inside, outside, None, &Counts::default(), running()).await;
        assert_eq!(relayed, Err(Refusal::BrokenOff));
        assert_eq!(begun.elapsed(), HALF_OPEN_MAX);
        drop(server);
    }

    #[tokio::test]
    async fn an_answer_that_comes_before_the_end_of_the_question_arrives() {
        let (mut client, inside) = tokio::io::duplex(1_000);
        let (mut server, outside) = tokio::io::duplex(1_000);
        let answering = async {
            server.read_exact(&mut [0; 1_000]).await.unwrap();
            server.write_all(&[3; 900]).await.unwrap();
            // It wants to hear no more.
            drop(server);
        };
        let asking = async {
            let (mut read, mut write) = tokio::io::split(&mut client);
            let asked = async {
                // More than is under way at once; it is not taken to its end.
                let _refused = write.write_all(&[1; 500_000]).await;
            };
            let mut heard = Vec::new();
            let (_, ()) = tokio::join!(read.read_to_end(&mut heard), asked);
            heard
        };
        let counts = Counts::default();
        let (relayed, heard, ()) = tokio::join!(relay(inside, outside, None, &counts, running()), asking, answering);
        assert_eq!((relayed, heard), (Err(Refusal::BrokenOff), vec![3; 900]));
    }

    #[tokio::test]
    async fn once_nobody_is_left_inside_what_was_sent_is_passed_on_and_no_more_is_waited_for() {
        let (mut client, inside) = tokio::io::duplex(1_000);
        let (mut server, outside) = tokio::io::duplex(1_000);
        let last = watch::Sender::new(true);
        let asking = async {
            client.write_all(&[1; 5_000]).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let mut heard = vec![0; 5_000];
        let counts = Counts::default();
        let relaying = relay(inside, outside, None, &counts, last.subscribe());
        let (relayed, (), read) = tokio::join!(relaying, asking, server.read_exact(&mut heard));
        read.unwrap();
        assert_eq!((relayed, heard), (Ok(()), vec![1; 5_000]), "the server has not ended");
    }

    #[tokio::test]
    async fn nothing_follows_a_greeting_before_the_server_has_answered() {
        let name = HostName::from_text("allowed.example").unwrap();
        let (mut client, inside) = tokio::io::duplex(10_000);
        let (mut server, outside) = tokio::io::duplex(10_000);
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let hello = |asked: &'static str| {
            let config = rustls::ClientConfig::builder_with_provider(provider.clone());
            let config = config.with_safe_default_protocol_versions().unwrap();
            let config = config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
            let mut client = rustls::ClientConnection::new(config.into(), asked.try_into().unwrap()).unwrap();
            let mut hello = Vec::new();
            client.write_tls(&mut hello).unwrap();
            hello
        };
        let (good, evil) = (hello("allowed.example"), hello("evil.example"));
        let talking = async {
            client.write_all(&[&good[..], &evil].concat()).await.unwrap();
            let mut heard = vec![0; good.len()];
            server.read_exact(&mut heard).await.unwrap();
            assert!(heard == good);
            let more = tokio::time::timeout(Duration::from_millis(100), server.read(&mut heard)).await;
            assert!(more.is_err(), "it is held back");
            let again = [&[22, 3, 3, 0, 42, 2, 0, 0, 38, 3, 3], &greeting::GREET_AGAIN[..], &[0; 4]].concat();
            server.write_all(&again).await.unwrap();
            let mut rest = Vec::new();
            server.read_to_end(&mut rest).await.unwrap();
            rest
        };
        let counts = Counts::default();
        let relaying = async { relay(inside, outside, Some(&name), &counts, running()).await };
        let (relayed, rest) = tokio::join!(relaying, talking);
        assert_eq!((relayed, rest), (Err(Refusal::OtherName), Vec::new()));
    }
}
