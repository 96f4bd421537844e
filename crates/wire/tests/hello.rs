//! The handshake against hostile, stale and unequal peers.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use holm_wire::hello::{self, Hello, HelloError, Lane, Limits, MESSAGE_BYTES};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

const LIMITS: Limits = Limits { deadline: Duration::from_secs(5), stale_bytes_max: 64 * 1024 };

fn hello_of(lane: Lane, epoch: u64) -> Hello {
    Hello { lane, epoch, nonce: [epoch as u8 ^ 0x5a; 32] }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test)
}

async fn shake(
    host_io: &mut DuplexStream,
    guest_io: &mut DuplexStream,
    hello: &Hello,
    epoch_min: u64,
) -> (Result<(), HelloError>, Result<Hello, HelloError>) {
    tokio::join!(hello::host(host_io, hello, &LIMITS), hello::guest(guest_io, hello.lane, epoch_min, &LIMITS))
}

/// What a host says, for tests that need the bytes themselves.
async fn hello_bytes(hello: &Hello) -> Vec<u8> {
    let (mut near, mut far) = duplex(1024);
    let limits = Limits { deadline: Duration::from_millis(1), ..LIMITS };
    hello::host(&mut near, hello, &limits).await.unwrap_err();
    let mut bytes = vec![0; MESSAGE_BYTES];
    far.read_exact(&mut bytes).await.unwrap();
    bytes
}

/// The check as the table in the module says it, written a second time.
fn seal(message: &mut [u8]) {
    let mut sum: u32 = 2_166_136_261;
    for &byte in &message[..60] {
        sum = (sum ^ u32::from(byte)).wrapping_mul(16_777_619);
    }
    message[60..].copy_from_slice(&sum.to_le_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever lies before it, both sides find the handshake and read not a byte beyond it.
    #[test]
    fn stale_bytes_are_skipped(
        before_guest in proptest::collection::vec(any::<u8>(), 0..3000),
        before_host in proptest::collection::vec(any::<u8>(), 0..3000),
        cut in 0..MESSAGE_BYTES, epoch in 1..u64::MAX,
    ) {
        run(async {
            let (mut host_io, mut guest_io) = duplex(16 * 1024);
            host_io.write_all(&before_guest).await.unwrap();
            // The beginning of a true hello, broken off: the worst kind of stale bytes.
            let old = hello_bytes(&hello_of(Lane::In, epoch - 1)).await;
            host_io.write_all(&old[..cut]).await.unwrap();
            guest_io.write_all(&before_host).await.unwrap();
            let hello = hello_of(Lane::In, epoch);
            let (host, guest) = shake(&mut host_io, &mut guest_io, &hello, epoch).await;
            host.unwrap();
            prop_assert_eq!(guest.unwrap(), hello);
            host_io.write_all(b"after").await.unwrap();
            guest_io.write_all(b"AFTER").await.unwrap();
            let (mut at_guest, mut at_host) = ([0; 5], [0; 5]);
            guest_io.read_exact(&mut at_guest).await.unwrap();
            host_io.read_exact(&mut at_host).await.unwrap();
            prop_assert_eq!((&at_guest, &at_host), (b"after", b"AFTER"));
            Ok(())
        })?;
    }

    /// Any bytes end in an error, never in a panic, a wait or a handshake.
    #[test]
    fn arbitrary_bytes_are_no_handshake(bytes in proptest::collection::vec(any::<u8>(), 0..4000)) {
        run(async {
            for is_host in [false, true] {
                let (mut near, mut far) = duplex(16 * 1024);
                far.write_all(&bytes).await.unwrap();
                far.shutdown().await.unwrap();
                let failed = if is_host {
                    hello::host(&mut near, &hello_of(Lane::Out, 1), &LIMITS).await.is_err()
                } else {
                    hello::guest(&mut near, Lane::Out, 0, &LIMITS).await.is_err()
                };
                prop_assert!(failed);
            }
            Ok(())
        })?;
    }
}

#[test]
fn an_older_hello_is_refused_and_waited_past() {
    run(async {
        let (mut host_io, mut guest_io) = duplex(16 * 1024);
        host_io.write_all(&hello_bytes(&hello_of(Lane::In, 3)).await).await.unwrap();
        let (host, guest) = shake(&mut host_io, &mut guest_io, &hello_of(Lane::In, 5), 4).await;
        host.unwrap();
        assert_eq!(guest.unwrap().epoch, 5);
    });
}

#[test]
fn refusals_are_typed_on_the_hosts_side() {
    run(async {
        let limits = Limits { deadline: Duration::from_millis(200), ..LIMITS };
        let (mut host_io, mut guest_io) = duplex(16 * 1024);
        let offered = hello_of(Lane::In, 1);
        let (host, _) = tokio::join!(
            hello::host(&mut host_io, &offered, &LIMITS),
            hello::guest(&mut guest_io, Lane::In, 7, &limits)
        );
        assert!(matches!(host, Err(HelloError::StaleEpoch { offered: 1, theirs: 7 })), "{host:?}");

        let (mut host_io, mut guest_io) = duplex(16 * 1024);
        let (host, guest) = tokio::join!(
            hello::host(&mut host_io, &offered, &LIMITS),
            hello::guest(&mut guest_io, Lane::Out, 0, &limits)
        );
        assert!(matches!(host, Err(HelloError::WrongLane)), "{host:?}");
        assert!(matches!(guest, Err(HelloError::Deadline(_))), "{guest:?}");
    });
}

#[test]
fn versions_that_differ_are_told_to_both_sides() {
    run(async {
        // To the guest: a hello of a later version.
        let mut bytes = hello_bytes(&hello_of(Lane::In, 1)).await;
        bytes[16] = 9;
        seal(&mut bytes);
        let (mut near, mut far) = duplex(1024);
        far.write_all(&bytes).await.unwrap();
        let guest = hello::guest(&mut near, Lane::In, 0, &LIMITS).await;
        assert!(matches!(guest, Err(HelloError::VersionMismatch { ours: 1, theirs: 9 })), "{guest:?}");
        // Its answer bears the version and the nonce, so that a host of any version can tell.
        let mut answer = [0; MESSAGE_BYTES];
        far.read_exact(&mut answer).await.unwrap();
        assert_eq!((&answer[16..48], answer[48]), (&bytes[28..60], 1));
        // To the host: the same answer with another version.
        answer[48] = 9;
        seal(&mut answer);
        let (mut near, mut far) = duplex(1024);
        far.write_all(&answer).await.unwrap();
        let host = hello::host(&mut near, &hello_of(Lane::In, 1), &LIMITS).await;
        assert!(matches!(host, Err(HelloError::VersionMismatch { ours: 1, theirs: 9 })), "{host:?}");
    });
}

#[test]
fn limits_are_kept() {
    run(async {
        let (mut near, _far) = duplex(1024);
        let short = Limits { deadline: Duration::from_millis(20), ..LIMITS };
        let late = hello::guest(&mut near, Lane::In, 0, &short).await;
        assert!(matches!(late, Err(HelloError::Deadline(_))), "{late:?}");

        let (mut near, mut far) = duplex(1024);
        let flood = async { while far.write_all(&[0; 1000]).await.is_ok() {} };
        tokio::select! {
            failed = hello::guest(&mut near, Lane::In, 0, &LIMITS) => {
                assert!(matches!(failed, Err(HelloError::TooManyStaleBytes(_))), "{failed:?}");
            }
            () = flood => panic!("the guest went away"),
        }
    });
}
