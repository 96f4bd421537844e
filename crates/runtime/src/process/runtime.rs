//! The agent's side: what can be done here, and the preparation of what needs privileges.

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{Mutex, OnceLock, PoisonError},
};

use holm_domain::{
    host::RuntimeInfo,
    run::{LiveUsage, RootSource, RunSpec, spec::WORK_DIR},
};
use holm_wire::guest_api::{IdRange, Setup, WorkDirLayers};
use rustix::process::geteuid;

use super::{
    Config, HIDDEN,
    blueprint::{Bind, Blueprint, Source},
    cgroup::{Controller, Layout},
    guard::{Guards, Shown, View},
    host_root::HostRoot,
    ids,
    image::{Image, Images},
    launch,
    lend::{Lending, Lent, lend, lend_layer},
    meters, reap,
    tree::{self, Owners, Use},
    witness,
};
use crate::{
    AttemptId, Context, Descriptor, Error, Prepared, Request, Resources, Runtime, Sandbox, ShimIdentity, StepReport,
    Stop, guest,
};

/// The name of this runtime.
pub const NAME: &str = "process";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The most reservations that are kept between `plan` and `prepare`.
const RESERVED_MAX: usize = ids::SLOTS as usize;

/// Namespaces of the kernel, without anything installed.
pub struct ProcessRuntime {
    config: Config,
    guards: Guards,
    host: OnceLock<Host>,
    reserved: Mutex<HashMap<AttemptId, ids::Reservation>>,
}

/// What was found out about this host.
struct Host {
    /// Whether there is a pool of ids: the agent is root.
    mapped: bool,
    /// Why no sandbox can be made at all, if so.
    broken: Option<String>,
    groups: Layout,
    images: Images,
    root: HostRoot,
    disk_namespaces: ids::DiskNamespaces,
}

impl ProcessRuntime {
    /// A runtime with this configuration. Nothing of the host is looked at yet.
    pub fn new(config: Config) -> Self {
        let guards = Guards::new(&config.guarded);
        Self { config, guards, host: OnceLock::new(), reserved: Mutex::new(HashMap::new()) }
    }

    fn host(&self) -> &Host {
        self.host.get_or_init(|| {
            let mapped = geteuid().is_root();
            let works = if mapped { ids::Slot(0).outer_namespace().map(drop) } else { ids::probe_own() };
            let groups = Layout::of_this_host();
            let broken = works.err().or(groups.as_ref().err().map(clone_error)).map(|error| error.to_string());
            let images = Images::new(&self.config.images, self.config.image_budget);
            let root = HostRoot::new(mapped);
            Host {
                mapped,
                broken,
                groups: groups.unwrap_or_default(),
                images,
                root,
                disk_namespaces: ids::DiskNamespaces::default(),
            }
        })
    }

    /// Which limits cannot be enforced here, each with the reason. That of the disk always can be.
    fn missing_limits(&self) -> Vec<String> {
        self.host().groups.missing.iter().map(|(what, why)| format!("limits.{}: {why}", what.name())).collect()
    }

    /// What cannot be enforced here, each with the reason.
    fn unenforced(&self) -> Vec<String> {
        let mut unenforced = self.missing_limits();
        if !self.host().mapped {
            unenforced.push("ids.unique: without root, all sandboxes share the agent's user id on the host".to_owned());
        }
        unenforced
    }

    fn reserve(&self, slot: u32, attempt: AttemptId) -> Result<OwnedFd, Error> {
        let kept = self.reserved.lock().unwrap_or_else(PoisonError::into_inner).remove(&attempt);
        if let Some(kept) = kept.filter(|kept| kept.slot.0 == slot) {
            return Ok(kept.lock);
        }
        let reserved = ids::reserve(&self.config.slots, slot)?;
        reserved.map(|reserved| reserved.lock).ok_or(Error::Exhausted("the planned place of user ids"))
    }
}

fn clone_error(error: &Error) -> Error {
    Error::Malformed(error.to_string())
}

impl Runtime for ProcessRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn fingerprint(&self) -> RuntimeInfo {
        let host = self.host();
        let mut unenforced = self.unenforced();
        let capabilities = match &host.broken {
            Some(problem) => {
                unenforced.insert(0, format!("no sandbox can be made: {problem}"));
                Vec::new()
            }
            None => {
                let limited = |c: &Controller| !host.groups.missing.contains_key(c);
                let limits = Controller::ALL.into_iter().filter(limited).map(|c| format!("limits.{}", c.name()));
                let always = ["root.host", "root.dir", "root.tar", "work_dir", "mounts", "limits.disk"];
                let ids = host.mapped.then(|| "ids.unique".to_owned());
                always.into_iter().map(str::to_owned).chain(limits).chain(ids).collect()
            }
        };
        RuntimeInfo { name: NAME.to_owned(), capabilities, unenforced }
    }

    fn plan(&self, request: &Request, taken: &[u32]) -> Result<Resources, Error> {
        let host = self.host();
        if let Some(problem) = &host.broken {
            return Err(Error::Launch(problem.clone()));
        }
        let missing = self.missing_limits();
        if request.spec.require_limits && !missing.is_empty() {
            return Err(Error::LimitsNotEnforceable(missing));
        }
        let mut uid_slot = None;
        if host.mapped {
            let reservation = ids::reserve_any(&self.config.slots, taken)?;
            uid_slot = Some(reservation.slot.0);
            let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
            if reserved.len() >= RESERVED_MAX {
                return Err(Error::Exhausted("the list of planned attempts"));
            }
            reserved.insert(request.attempt, reservation);
        }
        Ok(Resources {
            runtime: NAME.to_owned(),
            attempt: request.attempt,
            uid_slot,
            cgroups: host.groups.plan(&self.config.label.of(request.attempt)),
            mounts: Vec::new(),
            paths: Vec::new(),
        })
    }

    fn shim(&self, resources: &Resources) -> ShimIdentity {
        let ids = resources.uid_slot.map(|slot| ids::Slot(slot).shim()).map(|id| (id, id));
        ShimIdentity { label: self.config.label.of(resources.attempt), ids }
    }

    fn prepare(&self, request: &Request, resources: &Resources, stop: &Stop) -> Result<Prepared, Error> {
        let host = self.host();
        let label = self.config.label.of(request.attempt);
        let view = self.guards.look()?;
        let lending = Lending { lends: &self.config.lend, view: &view };
        let mut making = Making { descriptors: Vec::new(), unenforced: self.unenforced(), ids: None };
        let slot = match (host.mapped, resources.uid_slot) {
            (true, Some(slot)) => {
                making.give("slot", self.reserve(slot, request.attempt)?);
                let slot = ids::Slot(slot);
                making.give("userns", slot.outer_namespace()?);
                making.ids = Some(host.disk_namespaces.of(slot)?);
                Some(slot)
            }
            (false, None) => None,
            _ => return Err(Error::Malformed("the plan was made by another user".to_owned())),
        };
        making.give("guest.binary", guest::memfd()?);
        making.descriptors.extend(witness::folder(request.attempt.run)?);
        let spec = &request.spec;
        let (lower, image_digest, mut binds) = making.root(host, lending, spec, stop)?;
        let work = match &spec.work_dir {
            None => None,
            Some(work) => {
                let lent = lend_layer(lending, Path::new(&work.source))?;
                Some(making.source("work", lent, Use::Layer { set_id: false })?)
            }
        };
        binds.extend(making.binds(lending, spec)?);
        // Last, so that a request that cannot be met leaves none behind even for a moment.
        making.descriptors.extend(host.groups.create(&label, &spec.limits)?);
        let set_id = spec.allow_sudo && slot.is_some();
        let setup = setup(request, &binds, slot.is_some());
        let env = env(spec);
        let (mapped, egress) = (slot.is_some(), !spec.allow.is_empty());
        let disk_bytes = spec.limits.disk_bytes;
        let plan = Blueprint { label, mapped, disk_bytes, set_id, lower, work, binds, egress, setup, env };
        Ok(Prepared {
            launch: serde_json::to_value(&plan).map_err(|error| Error::Malformed(error.to_string()))?,
            descriptors: making.descriptors,
            image_digest,
            unenforced: making.unenforced,
        })
    }

    fn launch(&self, launch: serde_json::Value, descriptors: Vec<Descriptor>) -> Result<Sandbox, Error> {
        let plan = serde_json::from_value(launch).map_err(|error| Error::Malformed(error.to_string()))?;
        launch::launch(plan, descriptors)
    }

    fn measure(&self, resources: &Resources) -> LiveUsage {
        meters::measure(&resources.cgroups, &self.host().groups.hierarchies)
    }

    fn destroy(&self, resources: &Resources) -> Vec<StepReport> {
        let kept = self.reserved.lock().unwrap_or_else(PoisonError::into_inner).remove(&resources.attempt);
        let mut kept = kept.filter(|kept| resources.uid_slot == Some(kept.slot.0));
        let steps = reap::destroy(&self.config.label, &self.config.slots, resources, &mut kept);
        if let Some(kept) = kept {
            // Something in the place still lives: no agent of the host is to give it to another.
            self.reserved.lock().unwrap_or_else(PoisonError::into_inner).insert(resources.attempt, kept);
        }
        steps
    }

    fn tidy(&self) -> Vec<StepReport> {
        self.host().images.tidy()
    }

    fn inventory(&self) -> Result<Vec<Resources>, Error> {
        reap::inventory(&self.config.label, &self.host().groups)
    }
}

/// What is collected while a sandbox is prepared.
struct Making {
    descriptors: Vec<Descriptor>,
    unenforced: Vec<String>,
    /// The user namespace for idmapped mounts, where there is one.
    ids: Option<OwnedFd>,
}

impl Making {
    fn give(&mut self, name: &str, fd: OwnedFd) {
        self.descriptors.push(Descriptor { name: name.to_owned(), fd });
    }

    /// A tree as a detached mount, where the agent may make one; otherwise for the launcher to make and to check.
    fn source(&mut self, name: &str, lent: Lent, used: Use) -> Result<Source, Error> {
        let Lent { fd, path, identity: (device, inode), masks, .. } = lent;
        let Some(ids) = &self.ids else { return Ok(Source::Path { path, device, inode, masks }) };
        let cloned = tree::detach(fd.as_fd(), used, Some(ids.as_fd()));
        let (tree, owners) = cloned.context(|| format!("cloning the mounts at {}", path.display()))?;
        tree::mask(tree.as_fd(), &masks)?;
        if owners == Owners::Unmapped {
            let path = path.display();
            self.unenforced.push(format!(
                "owners: the file system of {path} knows no idmapped mounts; its files belong to nobody"
            ));
        }
        self.give(name, tree);
        Ok(Source::Descriptor(name.to_owned()))
    }

    /// A folder of the host that every run may see.
    ///
    /// No owner on the disk has an id inside: were the host's root the workload's, that one could read what only the host's
    /// root may (CAP_DAC_OVERRIDE counts for files whose owner has an id). So the bits for others decide, for everybody.
    fn shown(&mut self, name: &str, path: &Path, view: &View) -> Result<Source, Error> {
        let mut lent = own(path)?;
        lent.masks = view.masks(&lent.fd, path, Shown::Tree)?;
        if self.ids.is_none() {
            return self.source(name, lent, Use::ReadOnly);
        }
        let cloned = tree::detach(lent.fd.as_fd(), Use::ReadOnly, None);
        let (tree, _) = cloned.context(|| format!("cloning the mounts at {}", path.display()))?;
        tree::mask(tree.as_fd(), &lent.masks)?;
        self.give(name, tree);
        Ok(Source::Descriptor(name.to_owned()))
    }

    /// The image, its digest where it has one, and what of the host is mounted on it.
    fn root(
        &mut self,
        host: &Host,
        lending: Lending<'_>,
        spec: &RunSpec,
        stop: &Stop,
    ) -> Result<(Source, Option<String>, Vec<Bind>), Error> {
        let used = Use::Layer { set_id: spec.allow_sudo && self.ids.is_some() };
        match &spec.root {
            RootSource::Host {} => {
                let (image, top) = host.root.image(&host.images, stop)?;
                Ok((self.layer(image, used)?, None, self.top(top, lending.view)?))
            }
            RootSource::Dir { path } => {
                let lower = self.source("lower", lend_layer(lending, Path::new(path))?, used)?;
                Ok((lower, None, Vec::new()))
            }
            RootSource::Tar { path } => {
                let archive = lend(lending, Path::new(path), false, Shown::Layer)?;
                let image = host.images.get(&archive, self.ids.is_some(), stop)?;
                let digest = image.digest.clone();
                Ok((self.layer(image, used)?, Some(digest), Vec::new()))
            }
        }
    }

    fn layer(&mut self, image: Image, used: Use) -> Result<Source, Error> {
        // The shim holds it as long as it lives: what a sandbox stands on is not removed.
        self.give("image", image.lock);
        self.source("lower", own(&image.root)?, used)
    }

    /// The host's folders with programs, at the same places.
    fn top(&mut self, paths: Vec<String>, view: &View) -> Result<Vec<Bind>, Error> {
        let mut bind = |target: String| {
            let source = self.shown(&format!("top{target}"), Path::new(&target), view)?;
            Ok(Bind { source, target, read_only: true, directory: true })
        };
        paths.into_iter().map(&mut bind).collect()
    }

    fn binds(&mut self, lending: Lending<'_>, spec: &RunSpec) -> Result<Vec<Bind>, Error> {
        let mut binds = Vec::new();
        for (n, mount) in spec.mounts.iter().enumerate() {
            let lent = lend(lending, Path::new(&mount.source), !mount.read_only, Shown::Tree)?;
            let used = if mount.read_only { Use::ReadOnly } else { Use::Writable };
            let directory = lent.directory;
            let source = self.source(&format!("mount.{n}"), lent, used)?;
            binds.push(Bind { source, target: mount.target.clone(), read_only: mount.read_only, directory });
        }
        Ok(binds)
    }
}

/// Something that is opened for the agent's own reasons.
fn own(path: &Path) -> Result<Lent, Error> {
    let open = || {
        let fd = tree::open_exact(path)?;
        let identity = tree::identity(&fd)?;
        Ok::<_, std::io::Error>(Lent { fd, path: path.to_owned(), identity, directory: true, masks: Vec::new() })
    };
    open().context(|| format!("opening {}", path.display()))
}

fn setup(request: &Request, binds: &[Bind], mapped: bool) -> Setup {
    let spec = &request.spec;
    let work_dir = spec
        .work_dir
        .as_ref()
        .map(|_| WorkDirLayers { upper: format!("{HIDDEN}/work/upper"), target: WORK_DIR.to_owned() });
    let ids = match mapped {
        true => IdRange { outer_first: 1, count: ids::WORKLOAD_IDS },
        false => IdRange { outer_first: 0, count: 1 },
    };
    let read_only = binds.iter().filter(|bind| bind.read_only).map(|bind| bind.target.clone()).collect();
    // A name of a machine has no `_` (RFC 1123 §2.1).
    let hostname = request.attempt.run.to_string().replace('_', "-");
    let writes_to_host = binds.iter().any(|bind| !bind.read_only);
    let hidden = Some(HIDDEN.to_owned());
    let allow_sudo = spec.allow_sudo;
    Setup { hostname, ids, allow_sudo, hidden, work_dir, read_only, writes_to_host, redirect: None, trusted: None }
}

fn env(spec: &RunSpec) -> Vec<(String, String)> {
    let name = spec.user.as_deref().unwrap_or("root").split(':').next().unwrap_or("root");
    let (user, home) = match name {
        "root" | "0" => ("root", "/root".to_owned()),
        "holm" | "1000" if spec.root == RootSource::Host {} => ("holm", "/home/holm".to_owned()),
        other => (other, "/".to_owned()),
    };
    [("PATH", PATH), ("HOME", &home), ("USER", user), ("LANG", "C.UTF-8"), ("TERM", "dumb")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}
