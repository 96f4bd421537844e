//! Bytes from one side to the other, both ways, until both have ended.

use std::{
    io,
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

/// Passes on what `inside` and `outside` send, and that they have ended, until both have or one breaks off. What `inside` sends
/// first is looked at, where it asked for `name`.
pub async fn relay<Inside, Outside>(
    inside: Inside,
    outside: Outside,
    name: Option<&HostName>,
    counts: &Counts,
) -> Result<(), Refusal>
where
    Inside: AsyncRead + AsyncWrite + Unpin,
    Outside: AsyncRead + AsyncWrite + Unpin,
{
    let (mut inside_read, inside_write) = tokio::io::split(inside);
    let (outside_read, mut outside_write) = tokio::io::split(outside);
    let ended = watch::Sender::new(false);
    let up = async {
        if let Some(name) = name {
            let greeting = greeting::read(&mut inside_read, name).await?;
            outside_write.write_all(&greeting).await?;
            counts.sent.fetch_add(greeting.len() as u64, Ordering::Relaxed);
        }
        Ok(pump(inside_read, outside_write, &counts.sent, &ended).await?)
    };
    let down = async { Ok(pump(outside_read, inside_write, &counts.received, &ended).await?) };
    match tokio::try_join!(up, down) {
        Err(Unfit::OtherName) => Err(Refusal::OtherName),
        Err(Unfit::Malformed) => Err(Refusal::Malformed),
        Err(Unfit::Io(_)) => Err(Refusal::BrokenOff),
        Ok(_) => Ok(()),
    }
}

/// One direction, to its end.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    count: &AtomicU64,
    ended: &watch::Sender<bool>,
) -> io::Result<()> {
    let (mut buffer, mut turn) = (vec![0; BUFFER_BYTES], 0);
    loop {
        let length = match next(&mut from, &mut buffer, ended).await? {
            0 => break,
            length => length,
        };
        to.write_all(&buffer[..length]).await?;
        count.fetch_add(length as u64, Ordering::Relaxed);
        turn += length;
        if turn >= TURN_BYTES {
            turn = 0;
            tokio::task::yield_now().await;
        }
    }
    ended.send_replace(true);
    to.shutdown().await
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
        let (relayed, heard, asked) = tokio::join!(relay(inside, outside, None, &counts), asking, answering);
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
        let relayed = relay(inside, outside, None, &Counts::default()).await;
        assert_eq!(relayed, Err(Refusal::BrokenOff));
        assert_eq!(begun.elapsed(), HALF_OPEN_MAX);
        drop(server);
    }
}
