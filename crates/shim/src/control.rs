//! The shim's end of the control socket: one agent at a time, a new connection replaces the old one.
//!
//! Who connects is checked by the kernel's word (SO_PEERCRED, unix(7)): root, or the user who started the shim. Lines are
//! limited, and an agent that does not read its statuses is dropped rather than waited for.

use std::{
    io,
    os::unix::{fs::PermissionsExt as _, net::UnixListener as StdListener},
    path::Path,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    client::{LineBuffer, open_dir, short_path},
    protocol::{Command, LINE_BYTES_MAX, SOCKET_NAME, Status},
};

/// How soon a status follows another one of the same phase at the earliest.
pub const STATUS_PAUSE: Duration = Duration::from_millis(10);
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Makes the socket in the attempt's folder. Agents may connect from now on; they are served by [`serve`].
pub fn bind(run_dir: &Path) -> io::Result<StdListener> {
    let folder = open_dir(run_dir)?;
    let path = short_path(&folder, SOCKET_NAME);
    let listener = StdListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves agents that run as root or as `agent_uid`, for ever.
pub async fn serve(
    listener: UnixListener,
    agent_uid: u32,
    statuses: watch::Receiver<Status>,
    commands: mpsc::Sender<Command>,
) {
    // Held so that it is replaced, and with it the connection before.
    let mut _current: Option<AbortOnDropHandle<()>> = None;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the control socket accepts nobody");
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                continue;
            }
        };
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == 0 || peer.uid() == agent_uid => {
                let (statuses, commands) = (statuses.clone(), commands.clone());
                _current = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                    let why = converse(stream, statuses, commands).await;
                    tracing::debug!(why, "the agent's connection ended");
                })));
            }
            peer => tracing::warn!(?peer, "the control socket refused a stranger"),
        }
    }
}

async fn converse(
    stream: UnixStream,
    statuses: watch::Receiver<Status>,
    commands: mpsc::Sender<Command>,
) -> &'static str {
    let (mut read, mut write) = stream.into_split();
    let tell = async {
        let mut statuses = statuses;
        loop {
            let status = statuses.borrow_and_update().clone();
            if !send(&mut write, &status).await {
                return "it does not read";
            }
            let sent = Instant::now();
            if statuses.changed().await.is_err() {
                return "the shim ends";
            }
            let news = statuses.wait_for(|new| new.phase != status.phase);
            // Progress waits a little for more of it; a new phase does not. A sender that has gone is found above.
            let _ = tokio::time::timeout_at(sent + STATUS_PAUSE, news).await;
        }
    };
    let listen = async {
        let mut lines = LineBuffer::default();
        loop {
            match lines.take_line::<Command>() {
                Ok(Some(command)) => match commands.send(command).await {
                    Ok(()) => continue,
                    Err(_) => return "the shim ends",
                },
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "the agent sent something else than a command");
                    return "it spoke nonsense";
                }
            }
            match read.read_buf(&mut lines.bytes).await {
                Ok(0) => return "it closed it",
                Ok(_) => {}
                Err(_) => return "it broke",
            }
        }
    };
    tokio::select! {
        why = tell => why,
        why = listen => why,
    }
}

async fn send(stream: &mut (impl tokio::io::AsyncWrite + Unpin), status: &Status) -> bool {
    let Ok(mut line) = serde_json::to_vec(status) else { return false };
    line.push(b'\n');
    if line.len() > LINE_BYTES_MAX {
        tracing::error!(bytes = line.len(), "a status is longer than a line may be");
        return false;
    }
    matches!(tokio::time::timeout(WRITE_TIMEOUT, stream.write_all(&line)).await, Ok(Ok(())))
}
