//! The servers: the real operations over one store in memory, each with a clock of its own.
//!
//! An operation goes on from one use of the store to the next ([`Turns`]), also where it asks for several at once; what else
//! happens in between, on the same server or another one, is the world's to choose. A poll that finds nothing sleeps, on
//! the product's own bells and timers, until it is woken ([`Alarm`]). A server that dies leaves its operations where they are.
//!
//! All hosts are in a pool of the first org that is shared with another, and runs are of the one and of the other by turns.
//!
//! The timers of servers count whole milliseconds of the world's time.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use holm_api::{problem::Problem, runs::CreateRun};
use holm_domain::{
    AgentId, OrgId, ProjectId, RunId, TokenId, UnixMicros,
    access::{Role, Token},
    limits::LeaseConfig,
    run::{Cancel, Run, RunSpec},
};
use holm_server::{Clock, Config, Server, config::ServeLimits, direct::Direct};
use holm_store::{Between, Org, Project, Store};
use tokio::{runtime::Runtime, time::Instant};
use uuid::Uuid;

use crate::{
    network::{Answer, Request},
    plan::Plan,
    time::{At, micros},
};

/// The time of day when a simulation begins.
const BEGUN: UnixMicros = UnixMicros(1_700_000_000_000_000);

/// The pool in which all hosts are.
const POOL: &str = "pool";

/// Why there are no servers to simulate.
#[derive(Debug, thiserror::Error)]
pub enum NoServers {
    /// There is no executor.
    #[error("no executor: {0}")]
    Runtime(#[from] std::io::Error),
    /// The store does not take what has to be there.
    #[error("the store in memory: {0}")]
    Store(#[from] holm_store::Error),
    /// The times of the plan cannot be.
    #[error("the times of the plan: {0}")]
    Times(#[from] holm_domain::error::InvalidField),
}

/// A server, as it is called.
struct Called {
    /// By the org whose hosts they are.
    owner: Direct,
    /// By the org with which they are shared.
    guest: Direct,
}

struct Machine {
    clock: Clock,
    /// Until when its clock was moved.
    moved: At,
    /// How far its time of day is ahead, in microseconds.
    ahead: i64,
    life: u32,
    server: Option<Arc<Called>>,
}

/// What a server is asked to do.
#[derive(Debug)]
pub(crate) enum Job {
    Answer(Request),
    Reap,
    /// Takes a run in, once for each key.
    Create(RunSpec, usize),
    Cancel(RunId, Cancel),
}

/// What came of it.
pub(crate) enum Done {
    Answered(Answer),
    /// How long the reaper rests.
    Reaped(Duration),
    Created(Option<RunId>),
    Cancelled(bool),
}

/// How far an operation has come.
pub(crate) enum Step {
    /// It is about to use the store.
    Waits,
    /// It waits for something to happen, or for time to pass.
    Sleeps,
    Done(Done),
}

struct Operation {
    server: usize,
    future: Pin<Box<dyn Future<Output = Done>>>,
    /// The turns for which it waits.
    waiting: VecDeque<u64>,
    /// What wakes it, where it is one that may sleep.
    waker: Option<Waker>,
    sleeps: bool,
}

/// Who was woken, and who waits for that.
#[derive(Debug, Default)]
struct Woken {
    operations: BTreeSet<u64>,
    waits: Option<Waker>,
}

/// Notes that an operation was woken.
#[derive(Debug)]
struct Alarm {
    operation: u64,
    woken: Arc<Mutex<Woken>>,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        let mut woken = lock(&self.woken);
        woken.operations.insert(self.operation);
        if let Some(waits) = woken.waits.take() {
            waits.wake();
        }
    }
}

/// Has every operation stop before each use of the store, until that is granted.
#[derive(Debug, Default)]
struct Turns {
    granting: Arc<Mutex<Granting>>,
    /// Whether saves replace whatever is there.
    is_weak: bool,
}

#[derive(Debug, Default)]
struct Granting {
    /// How many turns there were.
    count: u64,
    /// Those for which the operation has asked that goes on now.
    asked: Vec<u64>,
    /// The one that is granted to it.
    granted: Option<u64>,
    /// How many saves found another version than the one that they were decided on.
    conflicts: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Between for Turns {
    fn turn(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(Turn { granting: self.granting.clone(), number: None })
    }

    fn may_replace(&self, expected: u64, stored: u64) -> bool {
        let is_conflict = expected != stored;
        lock(&self.granting).conflicts += u64::from(is_conflict);
        self.is_weak || !is_conflict
    }
}

struct Turn {
    granting: Arc<Mutex<Granting>>,
    number: Option<u64>,
}

impl Future for Turn {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut granting = lock(&this.granting);
        match this.number {
            Some(number) if granting.granted == Some(number) => {
                granting.granted = None;
                return Poll::Ready(());
            }
            Some(_) => {}
            None => {
                granting.count += 1;
                let number = granting.count;
                granting.asked.push(number);
                this.number = Some(number);
            }
        }
        // Whoever polls it among others asks again only those that were woken.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// All servers on one store.
pub(crate) struct Servers {
    // Its time is the world's.
    runtime: Runtime,
    begun: Instant,
    granting: Arc<Mutex<Granting>>,
    woken: Arc<Mutex<Woken>>,
    /// As the servers have it.
    served: Store,
    /// As whoever looks on has it.
    pub(crate) store: Store,
    /// A token of the org whose hosts they are, and one of that with which they are shared.
    tokens: [Token; 2],
    lease: LeaseConfig,
    reread_every: Duration,
    machines: Vec<Machine>,
    operations: BTreeMap<u64, Operation>,
    operations_begun: u64,
}

impl Servers {
    /// Servers whose times of day are ahead by so much; on a store that is no compare-and-swap if it `is_weak`.
    pub(crate) fn new(plan: &Plan, ahead: &[i64], is_weak: bool) -> Result<Self, NoServers> {
        let Plan { lease, reread_every, .. } = *plan;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let turns = Turns { is_weak, ..Turns::default() };
        let granting = turns.granting.clone();
        let (served, store) = Store::simulated(Arc::new(turns));
        let tokens = runtime.block_on(async {
            let tokens = [found(&store, 1, "default").await?, found(&store, 2, "guest").await?];
            store.pool_share(tokens[0].org, POOL, tokens[1].org, &[]).await?;
            Ok::<_, holm_store::Error>(tokens)
        })?;
        let machine = |&ahead| Machine { clock: Clock::default(), moved: At::default(), ahead, life: 0, server: None };
        let machines = ahead.iter().map(machine).collect();
        let begun = runtime.block_on(async { Instant::now() });
        let mut servers = Self {
            runtime,
            begun,
            granting,
            woken: Arc::default(),
            served,
            store,
            tokens,
            lease,
            reread_every,
            machines,
            operations: BTreeMap::new(),
            operations_begun: 0,
        };
        for index in 0..servers.count() {
            servers.start(index, At::default())?;
        }
        Ok(servers)
    }

    pub(crate) fn count(&self) -> usize {
        self.machines.len()
    }

    /// How many saves found another version than the one that they were decided on.
    pub(crate) fn conflicts(&self) -> u64 {
        lock(&self.granting).conflicts
    }

    /// Starts a server, which reads the time of day of its machine once.
    pub(crate) fn start(&mut self, index: usize, at: At) -> Result<u32, NoServers> {
        // One that is up is started anew.
        self.stop(index);
        let machine = &mut self.machines[index];
        machine.clock = Clock::manual(UnixMicros(BEGUN.plus(Duration::from_micros(at.0)).0 + machine.ahead));
        machine.moved = at;
        machine.life += 1;
        let limits = ServeLimits { reread_every: self.reread_every, ..ServeLimits::default() };
        let config =
            Config { lease: self.lease, limits, clock: machine.clock.clone(), org_limits: None, ..Config::default() };
        let [owner, guest] = self.tokens.clone();
        let owner = Server::new(config, self.served.clone())?.direct(owner);
        machine.server = Some(Arc::new(Called { guest: owner.for_holder_of(guest), owner }));
        Ok(machine.life)
    }

    /// A server dies, and its operations are not done.
    pub(crate) fn stop(&mut self, index: usize) {
        self.machines[index].server = None;
        self.operations.retain(|_, operation| operation.server != index);
    }

    pub(crate) fn life(&self, index: usize) -> u32 {
        self.machines[index].life
    }

    /// Sets the time of day of a server's machine so far ahead of true, in microseconds.
    pub(crate) fn set_ahead(&mut self, index: usize, at: At, ahead: i64) {
        let machine = &mut self.machines[index];
        machine.move_to(at);
        machine.clock.set_by(ahead - machine.ahead);
        machine.ahead = ahead;
    }

    /// A server begins with a job; nothing where it is down.
    pub(crate) fn begin(&mut self, index: usize, job: Job) -> Option<u64> {
        let server = self.machines[index].server.clone()?;
        self.operations_begun += 1;
        let alarm = || Alarm { operation: self.operations_begun, woken: self.woken.clone() };
        let waker = matches!(job, Job::Answer(Request::Poll(_))).then(|| Waker::from(Arc::new(alarm())));
        let future = Box::pin(work(server, job));
        let operation = Operation { server: index, future, waiting: VecDeque::new(), waker, sleeps: false };
        self.operations.insert(self.operations_begun, operation);
        Some(self.operations_begun)
    }

    /// An operation uses the store as it was about to, and goes on to the next time; nothing where its server has died.
    pub(crate) fn step(&mut self, number: u64, at: At) -> Option<Step> {
        let now = self.instant(at);
        let Operation { server, future, waiting, waker, sleeps } = self.operations.get_mut(&number)?;
        self.machines[*server].move_to(at);
        let (granting, woken) = (&self.granting, &self.woken);
        lock(granting).granted = waiting.pop_front();
        lock(woken).operations.remove(&number);
        let step = self.runtime.block_on(async {
            tokio::time::advance(now.saturating_duration_since(Instant::now())).await;
            poll_fn(|cx| {
                let polled = match &*waker {
                    Some(waker) => future.as_mut().poll(&mut Context::from_waker(waker)),
                    None => future.as_mut().poll(cx),
                };
                waiting.extend(lock(granting).asked.drain(..));
                match polled {
                    Poll::Ready(done) => Poll::Ready(Step::Done(done)),
                    Poll::Pending if !waiting.is_empty() => Poll::Ready(Step::Waits),
                    Poll::Pending if waker.is_some() => Poll::Ready(Step::Sleeps),
                    // It waits for a thread of the runtime.
                    Poll::Pending => Poll::Pending,
                }
            })
            .await
        });
        *sleeps = matches!(step, Step::Sleeps);
        if let Step::Done(_) = step {
            self.operations.remove(&number);
        }
        Some(step)
    }

    /// Lets time pass until `until`, or until somebody who sleeps is woken before; returns when that is.
    pub(crate) fn pass(&self, until: At) -> Option<At> {
        if !self.operations.values().any(|operation| operation.sleeps) {
            return None;
        }
        let (until, woken) = (self.instant(until), &self.woken);
        self.runtime.block_on(async {
            let somebody = poll_fn(|cx| {
                let mut woken = lock(woken);
                woken.waits = Some(cx.waker().clone());
                if woken.operations.is_empty() { Poll::Pending } else { Poll::Ready(()) }
            });
            tokio::time::timeout_at(until, somebody).await.ok()?;
            Some(At::default().plus(Instant::now().duration_since(self.begun)))
        })
    }

    /// Takes out who slept and was woken.
    pub(crate) fn woken(&mut self) -> Vec<u64> {
        let woken = std::mem::take(&mut lock(&self.woken).operations);
        woken.into_iter().filter(|number| self.operations.get(number).is_some_and(|one| one.sleeps)).collect()
    }

    /// What the timers of the servers show.
    fn instant(&self, at: At) -> Instant {
        self.begun + Duration::from_millis(at.0 / 1_000)
    }

    /// Both orgs, that whose hosts they are first.
    pub(crate) fn orgs(&self) -> [OrgId; 2] {
        self.tokens.each_ref().map(|token| token.org)
    }

    /// A run, of whichever org.
    pub(crate) async fn run_get(&self, run: RunId) -> holm_store::Result<Option<Run>> {
        let [owner, guest] = self.orgs();
        match self.store.run_get(owner, run).await? {
            Some(run) => Ok(Some(run)),
            None => self.store.run_get(guest, run).await,
        }
    }

    /// A host that has registered is put into the pool.
    pub(crate) fn share(&self, agent: AgentId) -> holm_store::Result<()> {
        self.read(async {
            match self.store.host_get(self.orgs()[0], agent).await? {
                Some(host) if host.pool.is_none() => self.store.host_pool(&host, Some(POOL), &[]).await,
                _ => Ok(()),
            }
        })
    }

    /// Reads the store.
    pub(crate) fn read<T>(&self, read: impl Future<Output = T>) -> T {
        self.runtime.block_on(read)
    }
}

impl Machine {
    fn move_to(&mut self, at: At) {
        self.clock.advance(Duration::from_micros(micros(at.since(self.moved))));
        self.moved = at;
    }
}

async fn work(server: Arc<Called>, job: Job) -> Done {
    let Called { owner, guest } = &*server;
    match job {
        Job::Answer(request) => Done::Answered(answer(owner, request).await.unwrap_or_else(Answer::Refused)),
        Job::Reap => Done::Reaped(owner.reap().await),
        Job::Create(spec, number) => {
            let by = if number % 2 == 0 { owner } else { guest };
            let created = by.run_create(CreateRun { project: None, spec }, format!("run-{number}")).await;
            Done::Created(created.ok().map(|run| run.id))
        }
        Job::Cancel(run, how) => {
            let is_owners = owner.run_cancel(run, how).await.is_ok();
            Done::Cancelled(is_owners || guest.run_cancel(run, how).await.is_ok())
        }
    }
}

/// An org with its project, and a token of it.
async fn found(store: &Store, number: u128, name: &str) -> holm_store::Result<Token> {
    let org = OrgId::from_uuid(Uuid::from_u128(number));
    let token = Token {
        id: TokenId::from_uuid(Uuid::from_u128(number)),
        org,
        role: Role::Agent,
        name: "simulated".to_owned(),
        hash: [u8::try_from(number).unwrap_or_default(); 32],
        created_at: BEGUN,
        expires_at: None,
        revoked_at: None,
    };
    let project = ProjectId::from_uuid(Uuid::from_u128(number));
    store.org_create(&Org { id: org, name: name.to_owned(), created_at: BEGUN }).await?;
    store.project_create(&Project { id: project, org, name: "default".to_owned(), created_at: BEGUN }).await?;
    store.token_create(&token, &[]).await?;
    Ok(token)
}

async fn answer(server: &Direct, request: Request) -> Result<Answer, Box<Problem>> {
    Ok(match request {
        Request::Register(body) => Answer::Registered(server.agent_register(body).await?),
        Request::Poll(body) => Answer::Polled(server.lease_poll(body).await?),
        Request::Renew(body) => Answer::Renewed(server.lease_renew(body).await?),
        Request::Start(run, body) => server.run_start(run, body).await.map(|()| Answer::Done)?,
        Request::Append(run, by, bytes) => Answer::Appended(server.log_append(run, by, bytes).await?.next_seq),
        Request::Events(run, body) => server.event_append(run, body).await.map(|()| Answer::Done)?,
        Request::Ended(run, body) => server.run_sandbox_ended(run, body).await.map(|()| Answer::Done)?,
        Request::Finish(run, body) => server.run_finish(run, body).await.map(|()| Answer::Done)?,
    })
}
