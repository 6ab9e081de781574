//! The agent's keeper with a scripted database.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use failover::adapters::clock::SystemClock;
use failover::adapters::keys::SigningKey;
use failover::agent::keeper::{Keeper, News, Parts, Shown};
use failover::engine::instance::Instance;
use failover::engine::lease::Enforcer;
use failover::engine::policy::Policy;
use failover::engine::situation::LocalDatabase as Said;
use failover::engine::situation::SeverRehearsal;
use failover::engine::synchrony::{ClosedWindow, RpoWindow, SyncLook};
use failover::engine::topology::{Role, SiteName};
use failover::engine::units::{Epoch, Lsn, MonoTime, Timeline};
use failover::ports::{
    AgentMemory, AgentStore, Clock, EffectError, Ledger, LocalDatabase, LocalLook, LocalRight,
    Server, StoreError, Succession, Synchronous,
};
use failover::wire::sealed::{Sealed, SignedOrder};
use failover::wire::{
    Came, Grant, Intake, Order, OrderAnswer, PeerAnswer, PeerQuestion, Postmark, ReportAnswer, What,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::logged;

/// How long a guard takes that takes its time.
const SLOW: Duration = Duration::from_millis(300);

/// A primary that is down until it is started under a right, and takes its first SQL badly.
#[derive(Debug, Default)]
struct Database {
    right: Mutex<Option<LocalRight>>,
    running: Mutex<bool>,
    refuses: AtomicU32,
    written: Mutex<Vec<Epoch>>,
    waits: AtomicBool,
    /// While it recovers: how much work it has done.
    recovering: Mutex<Option<u64>>,
    stalls: AtomicBool,
    standby: AtomicBool,
    promotions: AtomicU32,
    promotes_badly: AtomicBool,
    /// A promotion that is begun does not come while somebody waits for it.
    promotes_late: AtomicBool,
    takes_its_time: AtomicBool,
    broken: AtomicBool,
    fences: Mutex<Vec<Epoch>>,
    severed: AtomicBool,
    reconnections: AtomicU32,
    reconnects_badly: AtomicBool,
}

#[async_trait]
impl Server for Database {
    fn machine(&self) -> Option<String> {
        None
    }

    fn enforced_by(&self) -> Enforcer {
        Enforcer::Guard
    }

    async fn look(&self) -> Result<LocalLook, EffectError> {
        let right = *self.right.lock().unwrap();
        let role = if self.standby.load(Ordering::SeqCst) {
            Role::Standby
        } else {
            Role::Primary
        };
        Ok(LocalLook {
            starts_as: role,
            unfit: None,
            runs_as: self.running.lock().unwrap().then_some(role),
            foreign: None,
            pending: Vec::new(),
            recovering: *self.recovering.lock().unwrap(),
            right: right.map(|right| (right.epoch, right.until.unwrap_or_default())),
            fenced: None,
            ended: None,
            guard: None,
        })
    }

    async fn start_standby(&self) -> Result<(), EffectError> {
        unexpected()
    }

    async fn start_primary(&self, right: &LocalRight) -> Result<(), EffectError> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(EffectError::Failed("no space left on device".to_owned()));
        }
        *self.right.lock().unwrap() = Some(*right);
        *self.running.lock().unwrap() = true;
        Ok(())
    }

    async fn hold_right(&self, right: &LocalRight) -> Result<(), EffectError> {
        if self.takes_its_time.swap(false, Ordering::SeqCst) {
            tokio::time::sleep(SLOW).await;
        }
        *self.right.lock().unwrap() = Some(*right);
        Ok(())
    }

    async fn release_right(&self) -> Result<(), EffectError> {
        *self.right.lock().unwrap() = None;
        Ok(())
    }

    async fn fence(&self, epoch: Epoch, _cause: &str) -> Result<String, EffectError> {
        self.fences.lock().unwrap().push(epoch);
        *self.running.lock().unwrap() = false;
        Ok("down".to_owned())
    }

    async fn unfence(&self, _epoch: Epoch) -> Result<(), EffectError> {
        Ok(())
    }
}

#[async_trait]
impl Succession for Database {
    async fn sever(&self, _within: Duration) -> Result<(Lsn, bool), EffectError> {
        tracing::info!("severing");
        self.severed.store(true, Ordering::SeqCst);
        Ok((Lsn(9), true))
    }

    async fn reconnect(&self, _within: Duration) -> Result<(), EffectError> {
        self.reconnections.fetch_add(1, Ordering::SeqCst);
        if self.reconnects_badly.load(Ordering::SeqCst) {
            return Err(EffectError::Failed("connection refused".to_owned()));
        }
        self.severed.store(false, Ordering::SeqCst);
        Ok(())
    }

    async fn rehearse(
        &self,
        _fresh: bool,
        _peer_answers: bool,
        _within: Duration,
    ) -> Result<Option<SeverRehearsal>, EffectError> {
        Ok(None)
    }

    async fn keep_slot(&self, _name: &str, _within: Duration) -> Result<(), EffectError> {
        unexpected()
    }

    async fn promote(&self, _within: Duration) -> Result<(Timeline, Lsn), EffectError> {
        tracing::info!("promoting");
        self.promotions.fetch_add(1, Ordering::SeqCst);
        if self.promotes_badly.load(Ordering::SeqCst) {
            return Err(EffectError::Failed("connection refused".to_owned()));
        }
        if self.promotes_late.load(Ordering::SeqCst) {
            return Err(EffectError::Unknown("not promoted in time".to_owned()));
        }
        self.standby.store(false, Ordering::SeqCst);
        Ok((Timeline(2), Lsn(9)))
    }
}

#[async_trait]
impl Ledger for Database {
    async fn is_primary(&self, _within: Duration) -> Result<Option<(Timeline, Lsn)>, EffectError> {
        let primary = !self.standby.load(Ordering::SeqCst);
        Ok(primary.then_some((Timeline(2), Lsn(9))))
    }

    async fn write_epoch(&self, epoch: Epoch, _within: Duration) -> Result<(), EffectError> {
        assert!(
            *self.running.lock().unwrap(),
            "written into a database that is down"
        );
        let left = self.refuses.load(Ordering::SeqCst);
        if left > 0 {
            self.refuses.store(left - 1, Ordering::SeqCst);
            return Err(EffectError::Failed("starting up".to_owned()));
        }
        self.written.lock().unwrap().push(epoch);
        Ok(())
    }
}

#[async_trait]
impl Synchronous for Database {
    async fn look_at_standby(
        &self,
        _standby: &SiteName,
        _within: Duration,
    ) -> Result<SyncLook, EffectError> {
        Ok(SyncLook {
            named: self.waits.load(Ordering::SeqCst),
            position: Lsn(9),
            flushed: (!self.stalls.load(Ordering::SeqCst)).then_some(Lsn(9)),
            waiting: Vec::new(),
            obstacle: None,
        })
    }

    async fn wait_for_standby(
        &self,
        standby: &SiteName,
        _within: Duration,
    ) -> Result<Lsn, EffectError> {
        assert_eq!(standby.as_str(), "gcp");
        self.waits.store(true, Ordering::SeqCst);
        Ok(Lsn(9))
    }

    async fn go_on_alone(&self, _within: Duration) -> Result<(), EffectError> {
        self.waits.store(false, Ordering::SeqCst);
        Ok(())
    }
}

/// How an agent of this database closes the first window.
const CLOSED: ClosedWindow = ClosedWindow {
    entry: 1,
    from: Lsn(9),
};

fn unexpected<T>() -> Result<T, EffectError> {
    panic!("nobody asks for this here")
}

#[derive(Debug, Default)]
struct Memory(Mutex<Option<AgentMemory>>);

#[async_trait]
impl AgentStore for Memory {
    async fn load(&self) -> Result<Option<AgentMemory>, StoreError> {
        Ok(self.0.lock().unwrap().clone())
    }
    async fn save(&self, memory: &AgentMemory) -> Result<(), StoreError> {
        *self.0.lock().unwrap() = Some(memory.clone());
        Ok(())
    }
}

/// The installation that is tested.
const OWN: Instance = Instance { id: 1, place: 1 };

fn parts(database: &Arc<Database>, memory: &Arc<Memory>) -> Parts {
    Parts {
        life: LIFE,
        controller: Arc::new(orders_key().verifying_key()),
        group: "shop".parse().unwrap(),
        site: "aws".parse().unwrap(),
        instance: OWN,
        peer: "gcp".parse().unwrap(),
        database: LocalDatabase {
            server: Arc::clone(database) as Arc<dyn Server>,
            succession: Arc::clone(database) as Arc<dyn Succession>,
            ledger: Arc::clone(database) as Arc<dyn Ledger>,
            synchronous: Arc::clone(database) as Arc<dyn Synchronous>,
        },
        workloads: None,
        store: Arc::clone(memory) as Arc<dyn AgentStore>,
        clock: Arc::new(SystemClock),
    }
}

/// The agent's.
const LIFE: u64 = 5;

/// A mark that the agent made at this moment.
fn mark(at: MonoTime) -> Postmark {
    Postmark {
        life: LIFE,
        at: at.0,
    }
}

/// The controller's key for orders.
fn orders_key() -> &'static SigningKey {
    static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::generate().unwrap());
    &KEY
}

fn granted(epoch: u64) -> ReportAnswer {
    let text = include_str!("../../policies/standard.toml");
    let policy = Policy::read("standard.toml", text).unwrap();
    ReportAnswer {
        intake: Intake {
            postmark: Postmark {
                life: 1,
                at: Duration::ZERO,
            },
            taken: true,
        },
        window: None,
        standby_slot: None,
        epoch: Epoch(epoch),
        holder: Some("aws".parse().unwrap()),
        grant: Some(Ok(Grant {
            epoch: Epoch(epoch),
        })),
        peer: None,
        log: None,
        timers: policy.lease,
        probe_every: policy.detect.probe_every,
        probe_timeout: policy.detect.probe_timeout,
        restart_grace: policy.automation.local_restart_grace,
    }
}

#[tokio::test]
async fn a_primary_that_is_handed_over_gets_schema_and_epoch_with_its_first_right() {
    let database = Arc::new(Database::default());
    database.refuses.store(1, Ordering::SeqCst);
    let clock = SystemClock;
    let parts = parts(&database, &Arc::default());
    let (keeper, news, _shown) = Keeper::begin(parts).await.unwrap();
    let keeping = tokio::spawn(keeper.run());
    for epoch in [1, 1, 4] {
        let answer = Box::new(granted(epoch));
        news.send(News::Answered(clock.now(), answer))
            .await
            .unwrap();
        let written = async {
            while database.written.lock().unwrap().last() != Some(&Epoch(epoch)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, written)
            .await
            .expect("the epoch is written");
    }
    keeping.abort();
    let written = database.written.lock().unwrap().clone();
    assert_eq!(
        written,
        [Epoch(1), Epoch(4)],
        "once for each epoch, also after a refusal"
    );
}

/// The controller permits to go on without the standby.
fn told(entry: u64) -> News {
    let mut answer = Box::new(granted(1));
    answer.window = Some(RpoWindow::Open { entry });
    News::Answered(SystemClock.now(), answer)
}

/// For how long the standby has stalled, as it is reported.
fn stalled(shown: &Shown) -> Option<Duration> {
    Some(shown.facts.synchrony.as_ref()?.stalled)
}

#[tokio::test]
async fn a_standby_does_not_stall_while_its_primary_is_down() {
    let database = Arc::new(Database::default());
    let parts = parts(&database, &Arc::default());
    let (keeper, news, mut shown) = Keeper::begin(parts).await.unwrap();
    let keeping = tokio::spawn(keeper.run());
    news.send(told(1)).await.unwrap();
    database.stalls.store(true, Ordering::SeqCst);
    let stalls = shown.wait_for(|shown| stalled(shown) > Some(Duration::from_millis(300)));
    drop(stalls.await.unwrap());
    database.broken.store(true, Ordering::SeqCst);
    *database.running.lock().unwrap() = false;
    // A look that began before may still come in.
    let down = shown.wait_for(|shown| {
        shown.facts.database != Said::Up && stalled(shown) == Some(Duration::ZERO)
    });
    let within = tokio::time::timeout(Duration::from_secs(30), down).await;
    drop(within.expect("it stalls beside it").unwrap());
    keeping.abort();
}

#[tokio::test]
async fn only_a_newer_permission_lets_commits_go_on_that_wait() {
    let database = Arc::new(Database::default());
    let memory = Arc::new(Memory::default());
    let waits = || database.waits.load(Ordering::SeqCst);

    let parts_of_it = parts(&database, &memory);
    let (keeper, news, mut shown) = Keeper::begin(parts_of_it).await.unwrap();
    let keeping = tokio::spawn(keeper.run());
    news.send(told(1)).await.unwrap();
    let reported = shown.wait_for(|shown| {
        let facts = shown.facts.synchrony.as_ref();
        facts.and_then(|facts| facts.closed) == Some(CLOSED)
    });
    drop(reported.await.unwrap());
    let kept = memory.0.lock().unwrap().clone().unwrap();
    assert_eq!(kept.closed, Some(CLOSED), "durable before it is reported");
    keeping.abort();

    // The next agent's standby confirms nothing, and the old permission comes once more.
    database.stalls.store(true, Ordering::SeqCst);
    let parts_of_it = parts(&database, &memory);
    let (keeper, news, mut shown) = Keeper::begin(parts_of_it).await.unwrap();
    let keeping = tokio::spawn(keeper.run());
    news.send(told(1)).await.unwrap();
    let stalls = shown.wait_for(|shown| stalled(shown) > Some(Duration::from_millis(1300)));
    drop(stalls.await.unwrap());
    assert!(waits(), "what was closed is closed");
    news.send(told(5)).await.unwrap();
    while waits() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    keeping.abort();
}

#[tokio::test]
async fn the_first_word_of_a_new_agent_is_that_its_database_is_down() {
    let database = Arc::new(Database::default());
    let (_keeper, _news, shown) = Keeper::begin(parts(&database, &Arc::default()))
        .await
        .unwrap();
    let said = shown.borrow().facts.database.clone();
    assert!(matches!(said, Said::Waiting { .. }), "{said:?}");
}

/// A standby, running, that holds no right.
fn standby() -> Arc<Database> {
    let database = Database::default();
    database.standby.store(true, Ordering::SeqCst);
    *database.running.lock().unwrap() = true;
    Arc::new(database)
}

async fn order(
    news: &mpsc::Sender<News>,
    what: What,
    epoch: u64,
) -> oneshot::Receiver<OrderAnswer> {
    order_or_check(news, what, epoch, false).await
}

async fn order_or_check(
    news: &mpsc::Sender<News>,
    what: What,
    epoch: u64,
    check_only: bool,
) -> oneshot::Receiver<OrderAnswer> {
    let order = Order {
        plan: 7,
        group: "shop".parse().unwrap(),
        site: "aws".parse().unwrap(),
        instance: Some(OWN),
        epoch: Epoch(epoch),
        mark: mark(SystemClock.now()),
        valid_for: Duration::from_secs(60),
        check_only,
        what,
    };
    give(news, order).await
}

/// Hands an order of the controller to a keeper.
async fn give(news: &mpsc::Sender<News>, order: Order) -> oneshot::Receiver<OrderAnswer> {
    let (sender, answer) = oneshot::channel();
    let signed = SignedOrder::seal(order, orders_key()).unwrap();
    news.send(News::Ordered(Box::new(signed), sender))
        .await
        .unwrap();
    answer
}

/// Returns once everything that was sent before has been taken in.
async fn taken_in(news: &mpsc::Sender<News>) {
    let (sender, answer) = oneshot::channel();
    let question = PeerQuestion {
        site: "gcp".parse().unwrap(),
        epoch: Epoch(1),
        mark: mark(SystemClock.now()),
        instance: None,
    };
    news.send(News::PeerAsks(question, sender)).await.unwrap();
    answer.await.unwrap();
}

/// A grant that was asked for so much before its end is taken in: no promotion begins. With the
/// next grant one does.
async fn begins_no_promotion(database: Arc<Database>, left: impl Fn(Duration) -> MonoTime) {
    let (keeper, news, _shown) = Keeper::begin(parts(&database, &Arc::default()))
        .await
        .unwrap();
    let keeping = tokio::spawn(keeper.run());
    let answer = order(&news, What::Promote, 2).await;
    let grant = granted(2);
    let asked = left(grant.timers.lease_ttl);
    let late = News::Answered(asked, Box::new(grant));
    news.send(late).await.unwrap();
    taken_in(&news).await;
    assert_eq!(database.promotions.load(Ordering::SeqCst), 0);
    let now = News::Answered(SystemClock.now(), Box::new(granted(2)));
    news.send(now).await.unwrap();
    let came = answer.await.unwrap().unwrap();
    assert!(matches!(came, Came::Promoted { already: false, .. }));
    keeping.abort();
}

#[tokio::test]
async fn a_grant_that_is_over_when_it_is_taken_in_begins_no_promotion() {
    begins_no_promotion(standby(), |ttl| SystemClock.now().minus(ttl * 2)).await;
}

#[tokio::test]
async fn a_right_that_ran_out_while_the_guard_was_told_begins_no_promotion() {
    let database = standby();
    database.takes_its_time.store(true, Ordering::SeqCst);
    let nearly_over = |ttl| SystemClock.now().minus(ttl).plus(SLOW / 2);
    begins_no_promotion(database, nearly_over).await;
}

#[tokio::test]
async fn however_much_arrives_it_looks_at_the_guard() {
    let database = Arc::new(Database::default());
    *database.running.lock().unwrap() = true;
    *database.right.lock().unwrap() = Some(LocalRight {
        epoch: Epoch(1),
        until: None,
        fence: granted(1).timers.fence,
    });
    let (keeper, news, mut shown) = Keeper::begin(parts(&database, &Arc::default()))
        .await
        .unwrap();
    let keeping = tokio::spawn(keeper.run());
    let asking = tokio::spawn(async move {
        loop {
            taken_in(&news).await;
        }
    });
    *database.running.lock().unwrap() = false;
    let seen = shown.wait_for(|shown| shown.facts.database != Said::Up);
    let limit = Duration::from_secs(20);
    let seen = tokio::time::timeout(limit, seen).await;
    drop(seen.expect("it is seen that the database ended").unwrap());
    asking.abort();
    keeping.abort();
}

#[tokio::test]
async fn a_promotion_that_failed_leaves_no_right_behind_when_that_is_said() {
    let database = standby();
    database.promotes_badly.store(true, Ordering::SeqCst);
    let (keeper, news, shown) = Keeper::begin(parts(&database, &Arc::default()))
        .await
        .unwrap();
    let keeping = tokio::spawn(keeper.run());
    let answer = order(&news, What::Promote, 2).await;
    let now = News::Answered(SystemClock.now(), Box::new(granted(2)));
    news.send(now).await.unwrap();
    let came = answer.await.unwrap();
    assert!(matches!(came, Err(EffectError::Failed(_))), "{came:?}");
    assert_eq!(*database.right.lock().unwrap(), None);
    taken_in(&news).await;
    assert_eq!(shown.borrow().right, None);
    keeping.abort();
}

#[tokio::test]
async fn a_promotion_that_may_still_come_is_not_said_not_to_have_come() {
    let database = standby();
    database.promotes_late.store(true, Ordering::SeqCst);
    let memory = Arc::new(Memory::default());
    let (keeper, news, _shown) = Keeper::begin(parts(&database, &memory)).await.unwrap();
    let keeping = tokio::spawn(keeper.run());
    let answer = order(&news, What::Promote, 2).await;
    let now = News::Answered(SystemClock.now(), Box::new(granted(2)));
    news.send(now).await.unwrap();
    let came = answer.await.unwrap();
    assert!(matches!(came, Err(EffectError::Unknown(_))), "{came:?}");
    keeping.abort();
    // Nor does the agent after it know better, and it goes on asking for the right.
    for _agent in 0..2 {
        let (keeper, news, shown) = Keeper::begin(parts(&database, &memory)).await.unwrap();
        let keeping = tokio::spawn(keeper.run());
        assert!(shown.borrow().asks);
        for (what, check_only) in [(What::Promote, true), (What::Desist, false)] {
            let answer = order_or_check(&news, what, 2, check_only).await;
            let came = answer.await.unwrap();
            assert!(matches!(came, Err(EffectError::Unknown(_))), "{came:?}");
        }
        keeping.abort();
    }
    // It comes, while the right in its epoch is held.
    database.standby.store(false, Ordering::SeqCst);
    let (keeper, news, _shown) = Keeper::begin(parts(&database, &memory)).await.unwrap();
    let keeping = tokio::spawn(keeper.run());
    let came = order(&news, What::Desist, 2).await.await.unwrap().unwrap();
    assert!(matches!(came, Came::Promoted { already: true, .. }));
    keeping.abort();
}

#[tokio::test]
async fn who_promised_that_no_promotion_comes_refuses_one_that_comes_late() {
    let database = standby();
    let memory = Arc::new(Memory::default());
    let (keeper, news, _shown) = Keeper::begin(parts(&database, &memory)).await.unwrap();
    let keeping = tokio::spawn(keeper.run());
    let waits = order(&news, What::Promote, 2).await;
    let promised = order(&news, What::Desist, 2).await.await.unwrap();
    assert_eq!(promised, Ok(Came::Done));
    let given_up = waits.await.unwrap();
    assert!(
        matches!(given_up, Err(EffectError::Failed(_))),
        "{given_up:?}"
    );
    keeping.abort();
    let (keeper, news, _shown) = Keeper::begin(parts(&database, &memory)).await.unwrap();
    let keeping = tokio::spawn(keeper.run());
    let late = order(&news, What::Promote, 2).await.await.unwrap();
    assert!(matches!(late, Err(EffectError::Refused(_))), "{late:?}");
    assert_eq!(database.promotions.load(Ordering::SeqCst), 0);
    keeping.abort();
}

#[tokio::test]
async fn an_order_of_a_plan_before_the_one_that_severed_or_fenced_is_refused() {
    for memory in [
        AgentMemory {
            severed: Some(Epoch(3)),
            ..AgentMemory::default()
        },
        AgentMemory {
            fenced: Some(Epoch(3)),
            ..AgentMemory::default()
        },
    ] {
        let kept = Arc::new(Memory(Mutex::new(Some(memory))));
        let (keeper, news, _shown) = Keeper::begin(parts(&standby(), &kept)).await.unwrap();
        let keeping = tokio::spawn(keeper.run());
        for what in [What::Reconnect, What::Unfence] {
            let came = order(&news, what, 2).await.await.unwrap();
            assert!(matches!(came, Err(EffectError::Refused(_))), "{came:?}");
        }
        keeping.abort();
    }
}

/// A primary that runs under a right of epoch 1, and the ways to its keeper.
async fn active(
    database: &Arc<Database>,
) -> (mpsc::Sender<News>, watch::Receiver<Shown>, JoinHandle<()>) {
    *database.running.lock().unwrap() = true;
    *database.right.lock().unwrap() = Some(LocalRight {
        epoch: Epoch(1),
        until: None,
        fence: granted(1).timers.fence,
    });
    let (keeper, news, shown) = Keeper::begin(parts(database, &Arc::default()))
        .await
        .unwrap();
    let keeping = tokio::spawn(keeper.run());
    let answer = News::Answered(SystemClock.now(), Box::new(granted(1)));
    news.send(answer).await.unwrap();
    taken_in(&news).await;
    (news, shown, keeping)
}

/// What is shown of a primary with a right.
pub(crate) async fn shown_of_a_primary() -> Shown {
    let (_news, mut shown, keeping) = active(&Arc::new(Database::default())).await;
    let holds = shown.wait_for(|shown| shown.answered.is_some() && shown.primary);
    let shown = holds.await.unwrap().clone();
    keeping.abort();
    shown
}

/// An order as the controller gives it to the other site.
fn to_the_peer(what: What, epoch: u64) -> Order {
    Order {
        plan: 7,
        group: "shop".parse().unwrap(),
        site: "gcp".parse().unwrap(),
        instance: None,
        epoch: Epoch(epoch),
        mark: mark(MonoTime::default()),
        valid_for: Duration::ZERO,
        check_only: false,
        what,
    }
}

fn sealed(order: Order) -> Sealed {
    let signed = SignedOrder::seal(order, orders_key()).unwrap();
    signed.sealed().clone()
}

/// The other agent's word that this site is superseded.
async fn superseded(news: &mpsc::Sender<News>, order: Option<Sealed>, epoch: u64) {
    let answer = PeerAnswer {
        vouches: true,
        instance: None,
        superseded: true,
        order,
        epoch: Epoch(epoch),
        wall: SystemClock.wall(),
    };
    let told = News::PeerAnswered(SystemClock.now(), answer);
    news.send(told).await.unwrap();
    taken_in(news).await;
}

#[tokio::test]
async fn superseded_ends_a_right_only_with_the_controllers_order_for_the_one_who_says_it() {
    let database = Arc::new(Database::default());
    let (news, shown, keeping) = active(&database).await;
    let right = shown.borrow().right;
    let forged = SignedOrder::seal(
        to_the_peer(What::Sever, 2),
        &SigningKey::generate().unwrap(),
    );
    let forged = Some(forged.unwrap().sealed().clone());
    let change = |change: fn(&mut Order)| {
        let mut order = to_the_peer(What::Sever, 2);
        change(&mut order);
        Some(sealed(order))
    };
    for (lie, order) in [
        ("no order", None),
        ("signed by another", forged),
        ("of this epoch", Some(sealed(to_the_peer(What::Sever, 1)))),
        ("of no epoch", Some(sealed(to_the_peer(What::Sever, 0)))),
        (
            "another order",
            Some(sealed(to_the_peer(What::Reconnect, 2))),
        ),
        ("a fence", Some(sealed(to_the_peer(What::Fence, 2)))),
        ("a question", change(|order| order.check_only = true)),
        (
            "for us",
            change(|order| order.site = "aws".parse().unwrap()),
        ),
        (
            "another group",
            change(|order| order.group = "bank".parse().unwrap()),
        ),
    ] {
        for epoch in [2, (1 << 53) - 1] {
            superseded(&news, order.clone(), epoch).await;
            assert_eq!(*database.fences.lock().unwrap(), [], "{lie}");
            let now = shown.borrow().clone();
            assert_eq!((now.epoch, now.primary), (Epoch(1), true), "{lie}");
            // Nor does such an answer hold the right any longer.
            assert_eq!(now.right, right, "{lie}");
        }
    }
    superseded(&news, Some(sealed(to_the_peer(What::Sever, 2))), 2).await;
    assert_eq!(*database.fences.lock().unwrap(), [Epoch(2)]);
    assert_eq!(shown.borrow().right, None);
    keeping.abort();
}

#[tokio::test]
async fn a_promotion_that_was_ordered_ends_the_right_of_the_other_as_well() {
    let database = Arc::new(Database::default());
    let (news, _shown, keeping) = active(&database).await;
    superseded(&news, Some(sealed(to_the_peer(What::Promote, 5))), 1).await;
    assert_eq!(*database.fences.lock().unwrap(), [Epoch(5)], "the order's");
    keeping.abort();
}

/// The other agent asks in an epoch.
/// An agent that is ordered to sever, to promote and to fence; and one that the other agent tells of a
/// later plan.
async fn obeys() {
    let (keeper, news, _shown) = Keeper::begin(parts(&standby(), &Arc::default()))
        .await
        .unwrap();
    let keeping = tokio::spawn(keeper.run());
    order(&news, What::Sever, 2).await.await.unwrap().unwrap();
    let promoted = order(&news, What::Promote, 2).await;
    let grant = News::Answered(SystemClock.now(), Box::new(granted(2)));
    news.send(grant).await.unwrap();
    promoted.await.unwrap().unwrap();
    superseded(&news, Some(sealed(to_the_peer(What::Sever, 3))), 3).await;
    taken_in(&news).await;
    order(&news, What::Fence, 4).await.await.unwrap().unwrap();
    keeping.abort();
}

#[test]
fn every_line_of_an_order_says_of_which_group_plan_step_and_epoch_it_is() {
    let run = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(obeys());
    };
    let lines = logged::json(run);
    let found = |message: &str, step: &str, epoch: u64| {
        lines.iter().any(|line| {
            line["message"] == message
                && (&line["group"], &line["plan_id"]) == (&"shop".into(), &7.into())
                && (&line["step"], &line["epoch"]) == (&step.into(), &epoch.into())
        })
    };
    for (message, step, epoch) in [
        ("severing", "sever", 2),
        ("promoting", "promote", 2),
        ("promotion", "promote", 2),
        ("superseded", "sever", 3),
        ("fenced", "fence", 3),
        ("fenced", "fence", 4),
    ] {
        assert!(found(message, step, epoch), "{message} {epoch}: {lines:?}");
    }
    let text = logged::text(run);
    let span = "order{group=shop plan_id=7 epoch=4 step=fence}:fence{group=shop epoch=4 step=fence";
    assert!(text.iter().any(|line| line.contains(span)), "{text:?}");
}

async fn asked(news: &mpsc::Sender<News>, epoch: u64) -> PeerAnswer {
    let (sender, answer) = oneshot::channel();
    let question = PeerQuestion {
        instance: None,
        site: "gcp".parse().unwrap(),
        epoch: Epoch(epoch),
        mark: mark(SystemClock.now()),
    };
    news.send(News::PeerAsks(question, sender)).await.unwrap();
    answer.await.unwrap()
}

#[tokio::test]
async fn who_was_severed_shows_the_order_also_after_a_restart() {
    let memory = Arc::new(Memory::default());
    let (keeper, news, _shown) = Keeper::begin(parts(&standby(), &memory)).await.unwrap();
    let keeping = tokio::spawn(keeper.run());
    assert!(!asked(&news, 1).await.superseded);
    order(&news, What::Sever, 2).await.await.unwrap().unwrap();
    keeping.abort();
    let (keeper, news, _shown) = Keeper::begin(parts(&standby(), &memory)).await.unwrap();
    let keeping = tokio::spawn(keeper.run());
    let answer = asked(&news, 1).await;
    assert!(answer.superseded);
    let shown = SignedOrder::open(answer.order.unwrap(), &orders_key().verifying_key()).unwrap();
    assert_eq!(
        (shown.order().what, shown.order().epoch),
        (What::Sever, Epoch(2))
    );
    // In the plan's own epoch nobody is superseded by it, and nothing is shown.
    let answer = asked(&news, 2).await;
    assert_eq!((answer.superseded, answer.order), (false, None));
    keeping.abort();
}

#[tokio::test]
async fn an_order_counts_by_the_agents_own_mark_and_one_that_is_void_may_come_again() {
    let database = standby();
    let (keeper, news, _shown) = Keeper::begin(parts(&database, &Arc::default()))
        .await
        .unwrap();
    let keeping = tokio::spawn(keeper.run());
    let now = SystemClock.now();
    let minute = Duration::from_secs(60);
    let another = Postmark {
        life: LIFE + 1,
        at: now.0,
    };
    for (mark, valid_for, why) in [
        (another, minute, "this agent's predecessor"),
        (mark(now.minus(minute)), minute, "under way for too long"),
        (mark(now), Duration::ZERO, "under way for too long"),
        (mark(now.plus(minute)), minute, "not made yet"),
    ] {
        let order = Order {
            site: "aws".parse().unwrap(),
            mark,
            valid_for,
            ..to_the_peer(What::Sever, 2)
        };
        let came = give(&news, order).await.await.unwrap();
        let Err(EffectError::Failed(text)) = came else {
            panic!("{came:?}");
        };
        assert!(text.contains(why), "{text}");
        assert!(!database.severed.load(Ordering::SeqCst));
    }
    order(&news, What::Sever, 2).await.await.unwrap().unwrap();
    keeping.abort();
}

#[tokio::test]
async fn an_order_to_fence_that_comes_after_the_right_was_given_back_ends_nothing() {
    let database = Arc::new(Database::default());
    let (news, shown, keeping) = active(&database).await;
    let back = News::Answered(SystemClock.now(), Box::new(granted(2)));
    news.send(back).await.unwrap();
    let late = order(&news, What::Fence, 2).await.await.unwrap();
    assert!(matches!(late, Err(EffectError::Refused(_))), "{late:?}");
    assert_eq!(*database.fences.lock().unwrap(), []);
    assert!(shown.borrow().right.is_some());
    // That of the next plan is obeyed.
    order(&news, What::Fence, 3).await.await.unwrap().unwrap();
    assert_eq!(*database.fences.lock().unwrap(), [Epoch(3)]);
    keeping.abort();
}

/// The controller answers a standby: the other site holds the right, or nobody does.
async fn held_by(news: &mpsc::Sender<News>, holder: Option<&str>, epoch: u64) {
    let mut answer = granted(epoch);
    answer.holder = holder.map(|site| site.parse().unwrap());
    answer.grant = None;
    let answer = News::Answered(SystemClock.now(), Box::new(answer));
    news.send(answer).await.unwrap();
    taken_in(news).await;
}

#[tokio::test]
async fn a_severed_standby_connects_again_itself_once_the_other_site_has_its_right_back() {
    let database = standby();
    database.reconnects_badly.store(true, Ordering::SeqCst);
    let (keeper, news, mut shown) = Keeper::begin(parts(&database, &Arc::default()))
        .await
        .unwrap();
    let keeping = tokio::spawn(keeper.run());
    order(&news, What::Sever, 2).await.await.unwrap().unwrap();
    let tries = || database.reconnections.load(Ordering::SeqCst);
    // An answer from before the plan, and those in the middle of it.
    for (holder, epoch) in [(Some("gcp"), 1), (None, 2), (None, 3)] {
        held_by(&news, holder, epoch).await;
        assert_eq!(tries(), 0, "{holder:?} {epoch}");
    }
    assert!(asked(&news, 1).await.superseded);
    held_by(&news, Some("gcp"), 2).await;
    while tries() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(
        shown.borrow_and_update().facts.severed,
        Some(Epoch(2)),
        "not yet"
    );
    database.reconnects_badly.store(false, Ordering::SeqCst);
    while shown.borrow_and_update().facts.severed.is_some() {
        held_by(&news, Some("gcp"), 2).await;
    }
    assert!(!database.severed.load(Ordering::SeqCst));
    assert!(!asked(&news, 1).await.superseded);
    keeping.abort();
}
