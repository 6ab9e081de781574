//! The agent's keeper with a scripted database.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use failover::adapters::clock::SystemClock;
use failover::agent::keeper::{Keeper, News, Parts};
use failover::engine::policy::Policy;
use failover::engine::topology::Role;
use failover::engine::units::{Epoch, Lsn, Timeline};
use failover::ports::{
    AgentMemory, AgentStore, Clock, EffectError, LocalDatabase, LocalLook, LocalRight, StoreError,
};
use failover::wire::{Grant, ReportAnswer};

/// A primary that is down until it is started under a right, and takes its first SQL badly.
#[derive(Debug, Default)]
struct Database {
    right: Mutex<Option<LocalRight>>,
    running: Mutex<bool>,
    refuses: AtomicU32,
    written: Mutex<Vec<Epoch>>,
}

#[async_trait]
impl LocalDatabase for Database {
    async fn look(&self) -> Result<LocalLook, EffectError> {
        let right = *self.right.lock().unwrap();
        Ok(LocalLook {
            set_up_as: Role::Primary,
            running: *self.running.lock().unwrap(),
            right: right.map(|right| (right.epoch, right.until.unwrap_or_default())),
            fenced: None,
            ended: None,
        })
    }

    async fn start_primary(&self, right: &LocalRight) -> Result<(), EffectError> {
        *self.right.lock().unwrap() = Some(*right);
        *self.running.lock().unwrap() = true;
        Ok(())
    }

    async fn hold_right(&self, right: &LocalRight) -> Result<(), EffectError> {
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
        unexpected()
    }
    async fn fence(&self, _epoch: Epoch, _cause: &str) -> Result<String, EffectError> {
        unexpected()
    }
    async fn unfence(&self, _epoch: Epoch) -> Result<(), EffectError> {
        unexpected()
    }
    async fn sever(&self, _within: Duration) -> Result<(Lsn, bool), EffectError> {
        unexpected()
    }
    async fn reconnect(&self, _within: Duration) -> Result<(), EffectError> {
        unexpected()
    }
    async fn is_primary(&self, _within: Duration) -> Result<Option<(Timeline, Lsn)>, EffectError> {
        unexpected()
    }
    async fn promote(&self, _within: Duration) -> Result<(Timeline, Lsn), EffectError> {
        unexpected()
    }
}

fn unexpected<T>() -> Result<T, EffectError> {
    panic!("nobody asks for this here")
}

#[derive(Debug)]
struct NoMemory;

#[async_trait]
impl AgentStore for NoMemory {
    async fn load(&self) -> Result<Option<AgentMemory>, StoreError> {
        Ok(None)
    }
    async fn save(&self, _memory: &AgentMemory) -> Result<(), StoreError> {
        Ok(())
    }
}

fn granted(epoch: u64) -> ReportAnswer {
    let text = include_str!("../../policies/standard.toml");
    let policy = Policy::read("standard.toml", text).unwrap();
    ReportAnswer {
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
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let parts = Parts {
        group: "shop".parse().unwrap(),
        site: "aws".parse().unwrap(),
        database: Arc::clone(&database) as Arc<dyn LocalDatabase>,
        workloads: None,
        store: Arc::new(NoMemory),
        clock: Arc::clone(&clock),
    };
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
