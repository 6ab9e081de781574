//! A fence: PostgreSQL is stopped with increasing force until it is proven down. A read-only
//! setting would not be a fence (postgres.md P37).

use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};

use super::postmaster::{self, Processes};
use super::senders;
use super::wire::Ticket;
use super::{FenceMarker, FenceMethod, FenceProof, Guard, GuardEvent, GuardReply, marker};
use crate::agent::guard_protocol::{Exit, GuardConfig, boottime_ns};
use crate::engine::units::Epoch;

/// A refusal on this host takes microseconds; only a wrong address makes us wait this long.
pub(super) const CONNECT_PATIENCE: Duration = Duration::from_millis(50);

/// A fence under way.
#[derive(Debug)]
pub(super) struct Fence {
    epoch: Epoch,
    cause: String,
    began_ns: u64,
    began_at_ms: u64,
    /// The harshest means used so far.
    method: FenceMethod,
    /// Every process seen since the fence began.
    seen: Processes,
    waiting: Vec<Ticket>,
    unproven_told: bool,
    /// Since when only WAL senders delay the server's end.
    alone_since_ns: Option<u64>,
}

impl Guard {
    /// Begins a fence, or joins the one under way. The order matters: find the processes while
    /// their descent still shows, make the marker durable, and only then send the first signal.
    ///
    /// A guard that is late, or finds a server that is not its own, reverses that order: another
    /// site may already take writes, so each millisecond counts, and a clean end is worth nothing.
    /// The marker is not a proof: starting this database as a primary needs a lease from the
    /// controller in any case.
    pub(super) fn begin_fence(&mut self, cause: &str, epoch: Epoch, ticket: Option<Ticket>) {
        if let Some(mut fence) = self.fence.take() {
            fence.waiting.extend(ticket);
            if epoch > fence.epoch {
                fence.epoch = epoch;
                self.mark(&fence, None);
            }
            self.fence = Some(fence);
            return;
        }
        let strangers = self.strangers();
        let hurry = self.is_late() || !strangers.is_empty();
        let mut fence = Fence {
            epoch,
            cause: cause.to_owned(),
            began_ns: boottime_ns(),
            began_at_ms: wall_ms(),
            method: FenceMethod::AlreadyDown,
            seen: Processes::new(),
            waiting: ticket.into_iter().collect(),
            unproven_told: false,
            alone_since_ns: None,
        };
        if hurry && let Some(postmaster) = &self.postmaster {
            postmaster.kill_family();
            fence.method = FenceMethod::Kill;
        }
        fence.seen = self.habitat.processes(&strangers).unwrap_or_default();
        fence.seen.extend(strangers);
        if hurry && !fence.seen.is_empty() {
            postmaster::kill(&fence.seen);
            fence.method = FenceMethod::Kill;
        }
        self.right = None;
        self.mark(&fence, None);
        self.fence = Some(fence);
        self.carry_on_fence();
    }

    /// One turn of a fence, without waiting: the signals that are due, then the check for the
    /// proof.
    pub(super) fn carry_on_fence(&mut self) {
        let Some(mut fence) = self.fence.take() else {
            return;
        };
        // Processes forked since the last check are found before their parent is gone; without
        // `/proc` there is no proof, and the known processes are killed.
        fence.seen.extend(self.strangers());
        let looked = self.habitat.processes(&fence.seen);
        fence
            .seen
            .extend(looked.iter().flatten().map(|(pid, start)| (*pid, *start)));
        let alive = postmaster::still_alive(&fence.seen);
        if !alive.is_empty() {
            self.signal_what_is_due(&mut fence);
        }
        let proof = match looked {
            Err(cause) => Err(format!("`/proc` cannot be read: {cause}")),
            Ok(_) if !alive.is_empty() => Err(format!("processes {alive:?} live")),
            Ok(_) => all_refuse(&self.config),
        };
        match proof {
            Ok(refused) => self.end_fence(fence, refused),
            Err(alive) => {
                if !fence.unproven_told && fence.took() >= self.config.stop.total() {
                    fence.unproven_told = true;
                    tracing::error!(alive, epoch = %fence.epoch, "fence not proven in time");
                    for ticket in fence.waiting.drain(..) {
                        let alive = alive.clone();
                        self.wire.reply(ticket, GuardReply::Unproven { alive });
                    }
                    self.wire.tell_all(&GuardEvent::Unproven { alive });
                }
                self.fence = Some(fence);
            }
        }
    }

    fn signal_what_is_due(&self, fence: &mut Fence) {
        let times = self.config.stop;
        let fast = Duration::from_millis(times.fast_ms);
        let immediate = fast.saturating_add(Duration::from_millis(times.immediate_ms));
        let due = match &self.postmaster {
            // After a clean end only the log collector is left, writing its last lines.
            None if fence.method == FenceMethod::Fast
                && fence.took() < fast
                && self.last_exit.as_ref().is_some_and(Exit::is_clean) =>
            {
                FenceMethod::Fast
            }
            // Sessions without a postmaster, or with a stopped one, go on serving (postgres.md
            // P36).
            None => FenceMethod::Kill,
            Some(postmaster) if postmaster.is_stopped() => FenceMethod::Kill,
            Some(_) if fence.took() >= immediate => FenceMethod::Kill,
            Some(_) if fence.took() >= fast => FenceMethod::Immediate,
            Some(_) => FenceMethod::Fast,
        };
        let harsher = due > fence.method;
        fence.method = fence.method.max(due);
        match (fence.method, &self.postmaster) {
            // Searched each turn, for processes forked meanwhile.
            (FenceMethod::Kill, _) => postmaster::kill(&fence.seen),
            (FenceMethod::Immediate, Some(it)) if harsher => it.signal(Signal::QUIT),
            (FenceMethod::Fast, Some(it)) if harsher => it.signal(Signal::INT),
            (FenceMethod::Fast, Some(it)) => {
                let left = senders::left_alone(it.pid, &fence.seen);
                if left.is_empty() {
                    fence.alone_since_ns = None;
                    return;
                }
                let now = boottime_ns();
                let since = *fence.alone_since_ns.get_or_insert(now);
                if Duration::from_nanos(now.saturating_sub(since)) >= senders::CONFIRMED_WITHIN {
                    senders::hang_up(it.pid, &left);
                }
            }
            (FenceMethod::Immediate | FenceMethod::Fast | FenceMethod::AlreadyDown, _) => {}
        }
    }

    fn end_fence(&mut self, fence: Fence, refused: String) {
        let proof = FenceProof {
            epoch: fence.epoch,
            cause: fence.cause.clone(),
            at_ms: wall_ms(),
            method: fence.method,
            took_ms: u64::try_from(fence.took().as_millis()).unwrap_or(u64::MAX),
            refused,
        };
        self.mark(&fence, Some(&proof));
        // The proof may be complete before the postmaster is reaped: its end is still this fence's.
        if let Some(ended) = &mut self.postmaster {
            ended.fenced = true;
        }
        tracing::info!(epoch = %proof.epoch, cause = proof.cause, took_ms = proof.took_ms, "fenced");
        for ticket in fence.waiting {
            self.wire.reply(ticket, GuardReply::Fenced(proof.clone()));
        }
        self.wire.tell_all(&GuardEvent::Fenced(proof.clone()));
        self.last_proof = Some(proof);
    }

    /// Writes the marker, unless there is one of a higher epoch. A disk that does not store it does
    /// not delay the fence: the guard remembers, and logs it.
    fn mark(&mut self, fence: &Fence, proof: Option<&FenceProof>) {
        if self
            .marker
            .as_ref()
            .is_some_and(|it| it.epoch > fence.epoch)
        {
            return;
        }
        let marker = FenceMarker {
            epoch: fence.epoch,
            cause: fence.cause.clone(),
            at_ms: fence.began_at_ms,
            proof: proof.cloned(),
        };
        if let Err(cause) = marker::write(&self.config.state_dir, &marker) {
            tracing::error!(%cause, "the fence marker is not durable");
        }
        self.marker = Some(marker);
    }
}

impl Fence {
    /// Whether its time is over without proof: it goes on, but no longer in a hurry.
    pub(super) fn is_overdue(&self) -> bool {
        self.unproven_told
    }

    fn took(&self) -> Duration {
        Duration::from_nanos(boottime_ns().saturating_sub(self.began_ns))
    }
}

/// The second half of the proof: nothing listens where PostgreSQL did. Returns the places, or the
/// first that did not clearly refuse.
fn all_refuse(config: &GuardConfig) -> Result<String, String> {
    let mut refused = Vec::new();
    for address in config.addresses()? {
        match TcpStream::connect_timeout(&address, CONNECT_PATIENCE) {
            Err(cause) if cause.kind() == ErrorKind::ConnectionRefused => {
                refused.push(address.to_string());
            }
            Err(cause) => return Err(format!("`{address}` does not refuse: {cause}")),
            Ok(_) => return Err(format!("`{address}` still accepts connections")),
        }
    }
    let socket = config.postgresql_socket();
    match UnixStream::connect(&socket) {
        Err(cause)
            if matches!(
                cause.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::NotFound
            ) =>
        {
            refused.push(socket.display().to_string());
        }
        Err(cause) => return Err(format!("`{}` does not refuse: {cause}", socket.display())),
        Ok(_) => return Err(format!("`{}` still accepts connections", socket.display())),
    }
    Ok(refused.join(", "))
}

/// Wall clock, for people: milliseconds since 1970 UTC.
fn wall_ms() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds
        .saturating_mul(1000)
        .saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000)
}
