//! The name server on 127.0.0.53 of a sandbox that reaches something: it asks the host for each name.
//!
//! What always holds: nothing of a question leaves the sandbox but the name, and nothing of an answer comes in but an address
//! that stands for the name here; the host decides. A question that cannot be asked is answered as failed, at once.

use std::{
    cell::{Cell, RefCell},
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::OwnedFd,
    rc::Rc,
    time::Duration,
};

use holm_wire::{
    dns::{QUESTION_BYTES_MAX, Question, Reply},
    host_api::{Resolve, Resolved},
    http2::{self, Client},
};
use http::{Method, StatusCode};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrAny, SocketFlags, SocketType, bind, recvfrom, sendto, socket_with,
};
use tokio::io::unix::AsyncFd;

const ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 53), 53);
/// The most questions that wait for the host at once.
const ASKED_MAX: usize = 64;
/// How long the host may take for one: who asked has asked again by then.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Asks the host of whichever epoch there is.
#[derive(Default)]
pub struct Names {
    host: RefCell<Option<Client>>,
    asked: Cell<usize>,
}

/// The socket of the name server. The workload must not have been started: its port is taken before it can be.
pub fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    bind(&socket, &ADDRESS)?;
    Ok(socket)
}

impl Names {
    /// The host of a new epoch, or that there is none.
    pub fn set_host(&self, host: Option<Client>) {
        self.host.replace(host);
    }

    /// Begins to answer.
    pub fn serve(self: &Rc<Self>) -> io::Result<()> {
        let (names, socket) = (self.clone(), Rc::new(crate::sys::watched(socket()?)?));
        tokio::task::spawn_local(async move {
            while let Ok(mut ready) = socket.readable().await {
                let mut question = [0; QUESTION_BYTES_MAX];
                let received = ready.try_io(|socket| Ok(recvfrom(socket, &mut question[..], RecvFlags::DONTWAIT)?));
                if let Ok(Ok((count, _, Some(from)))) = received
                    && let Some(question) = Question::parse(&question[..count])
                {
                    names.take(&socket, question, from);
                }
                tokio::task::yield_now().await;
            }
        });
        Ok(())
    }

    /// Answers one question, once the host has.
    fn take(self: &Rc<Self>, socket: &Rc<AsyncFd<OwnedFd>>, question: Question, from: SocketAddrAny) {
        let host = self.host.borrow().clone().filter(|_| self.asked.get() < ASKED_MAX);
        let (names, socket) = (self.clone(), socket.clone());
        self.asked.set(self.asked.get() + 1);
        tokio::task::spawn_local(async move {
            let reply = match host {
                Some(host) => ask(&host, &question).await,
                None => Reply::Failed,
            };
            // An asker that is gone already gets none.
            let _ = sendto(socket.get_ref(), &question.answer(reply), SendFlags::DONTWAIT, &from);
            names.asked.set(names.asked.get() - 1);
        });
    }
}

async fn ask(host: &Client, question: &Question) -> Reply {
    let resolve = Resolve { name: question.name.clone() };
    let asked = host.json(Method::POST, "/resolve", Some(&resolve));
    let Ok(answer) = tokio::time::timeout(ANSWER_WITHIN, asked).await else { return Reply::Failed };
    match answer {
        Ok(Resolved { address, ttl_s }) if question.is_for_address => Reply::Address(address, ttl_s),
        Ok(_) => Reply::NoData,
        Err(http2::Error::Status { status: StatusCode::FORBIDDEN, .. }) => Reply::Refused,
        Err(_) => Reply::Failed,
    }
}
