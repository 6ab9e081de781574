//! The agent's keeper with a scripted database.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use failover::adapters::clock::SystemClock;
use failover::agent::keeper::{Keeper, News, Parts, Shown};
use failover::engine::policy::Policy;
use failover::engine::situation::LocalDatabase as Said;
use failover::engine::synchrony::{ClosedWindow, RpoWindow, SyncLook};
use failover::engine::topology::{Role, SiteName};
use failover::engine::units::{Epoch, Lsn, MonoTime, Timeline};
use failover::ports::{
    AgentMemory, AgentStore, Clock, EffectError, LocalDatabase, LocalLook, LocalRight, StoreError,
};
use failover::wire::{
    Came, Grant, Order, OrderAnswer, PeerQuestion, Postmark, Receipt, ReportAnswer, What,
};
use tokio::sync::{mpsc, oneshot};

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
    stalls: AtomicBool,
    standby: AtomicBool,
    promotions: AtomicU32,
    promotes_badly: AtomicBool,
    /// A promotion that is begun does not come while somebody waits for it.
    promotes_late: AtomicBool,
    takes_its_time: AtomicBool,
    broken: AtomicBool,
}

#[async_trait]
impl LocalDatabase for Database {
    async fn look(&self) -> Result<LocalLook, EffectError> {
        let right = *self.right.lock().unwrap();
        Ok(LocalLook {
            set_up_as: if self.standby.load(Ordering::SeqCst) {
                Role::Standby
            } else {
                Role::Primary
            },
            running: *self.running.lock().unwrap(),
            right: right.map(|right| (right.epoch, right.until.unwrap_or_default())),
            fenced: None,
            ended: None,
        })
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

    async fn start_standby(&self) -> Result<(), EffectError> {
        unexpected()
    }
    async fn release_right(&self) -> Result<(), EffectError> {
        *self.right.lock().unwrap() = None;
        Ok(())
    }
    async fn fence(&self, _epoch: Epoch, _cause: &str) -> Result<String, EffectError> {
        unexpected()
    }
    async fn unfence(&self, _epoch: Epoch) -> Result<(), EffectError> {
        Ok(())
    }
    async fn sever(&self, _within: Duration) -> Result<(Lsn, bool), EffectError> {
        unexpected()
    }
    async fn reconnect(&self, _within: Duration) -> Result<(), EffectError> {
        unexpected()
    }
    async fn is_primary(&self, _within: Duration) -> Result<Option<(Timeline, Lsn)>, EffectError> {
        let primary = !self.standby.load(Ordering::SeqCst);
        Ok(primary.then_some((Timeline(2), Lsn(9))))
    }
    async fn promote(&self, _within: Duration) -> Result<(Timeline, Lsn), EffectError> {
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

fn parts(database: &Arc<Database>, memory: &Arc<Memory>) -> Parts {
    Parts {
        group: "shop".parse().unwrap(),
        site: "aws".parse().unwrap(),
        peer: "gcp".parse().unwrap(),
        database: Arc::clone(database) as Arc<dyn LocalDatabase>,
        workloads: None,
        store: Arc::clone(memory) as Arc<dyn AgentStore>,
        clock: Arc::new(SystemClock),
    }
}

fn granted(epoch: u64) -> ReportAnswer {
    let text = include_str!("../../policies/standard.toml");
    let policy = Policy::read("standard.toml", text).unwrap();
    ReportAnswer {
        receipt: Receipt {
            postmark: Postmark {
                life: 1,
                at: Duration::ZERO,
            },
            taken: true,
        },
        window: None,
        epoch: Epoch(epoch),
        holder: Some("aws".parse().unwrap()),
        grant: Some(Ok(Grant {
            epoch: Epoch(epoch),
        })),
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
    let expires = SystemClock.wall().0 + 60_000;
    let order = Order {
        plan: 7,
        group: "shop".parse().unwrap(),
        site: "aws".parse().unwrap(),
        epoch: Epoch(epoch),
        expires: failover::engine::units::WallTime(expires),
        check_only,
        what,
    };
    let (sender, answer) = oneshot::channel();
    news.send(News::Ordered(Box::new(order), sender))
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
