//! Tokens that somebody has to make for us: made anew early, and kept as long as they are taken.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::engine::units::MonoTime;
use crate::ports::Clock;

/// How long after a failure another token is asked for while the old one is still good.
const AGAIN: Duration = Duration::from_secs(15);

/// What an API server takes.
#[derive(Clone)]
pub struct Token {
    /// The secret itself.
    pub secret: String,
    /// How long it is surely taken, from before it was asked for.
    pub good_for: Duration,
    /// After how long another one is asked for: well before the end.
    pub renew_after: Duration,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(good for {:?})", self.good_for)
    }
}

/// Whoever makes tokens.
#[async_trait]
pub trait TokenSource: Send + Sync + fmt::Debug {
    /// Makes one, or says in words why not.
    async fn make(&self) -> Result<Token, String>;
}

/// The token in use.
#[derive(Debug)]
pub struct Tokens {
    source: Arc<dyn TokenSource>,
    clock: Arc<dyn Clock>,
    /// How long making one may take.
    within: Duration,
    held: Mutex<Option<Held>>,
    /// Somebody is asking for another one.
    renewing: AtomicBool,
}

#[derive(Debug, Clone)]
struct Held {
    token: Token,
    since: MonoTime,
    /// When asking for another one failed.
    failed: Option<MonoTime>,
}

impl Held {
    fn is_good(&self, now: MonoTime) -> bool {
        now.since(self.since) < self.token.good_for
    }

    fn is_due(&self, now: MonoTime) -> bool {
        let lately = self.failed.is_some_and(|failed| now.since(failed) < AGAIN);
        now.since(self.since) >= self.token.renew_after && !lately
    }
}

impl Tokens {
    /// Makes none yet.
    pub fn new(source: Arc<dyn TokenSource>, clock: Arc<dyn Clock>, within: Duration) -> Self {
        Self {
            source,
            clock,
            within,
            held: Mutex::new(None),
            renewing: AtomicBool::new(false),
        }
    }

    fn held(&self) -> Option<Held> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.clone()
    }

    /// How old the token in use is; `None` before the first.
    pub fn age(&self) -> Option<Duration> {
        let now = self.clock.now();
        self.held().map(|held| now.since(held.since))
    }

    /// The secret. One that is good is given at once, while another one is made beside it as soon as
    /// that is due; only without one is there a wait.
    pub async fn secret(self: &Arc<Self>) -> Result<String, String> {
        let now = self.clock.now();
        let Some(held) = self.held().filter(|held| held.is_good(now)) else {
            return self.make().await;
        };
        if held.is_due(now) && !self.renewing.swap(true, Ordering::AcqRel) {
            let tokens = Arc::clone(self);
            tokio::spawn(async move {
                if let Err(why) = tokens.make().await {
                    tracing::warn!(
                        why,
                        "no new token for the API server, the old one is in use"
                    );
                }
                tokens.renewing.store(false, Ordering::Release);
            });
        }
        Ok(held.token.secret)
    }

    async fn make(&self) -> Result<String, String> {
        // Counted from before it was asked for.
        let since = self.clock.now();
        let made = tokio::time::timeout(self.within, self.source.make()).await;
        let made = made.unwrap_or_else(|_elapsed| Err("no answer in time".to_owned()));
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match made {
            Ok(token) => {
                let secret = token.secret.clone();
                *held = Some(Held {
                    token,
                    since,
                    failed: None,
                });
                Ok(secret)
            }
            Err(why) => {
                if let Some(held) = held.as_mut() {
                    held.failed = Some(since);
                }
                Err(why)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use tokio::sync::Notify;

    use super::*;
    use crate::engine::units::WallTime;

    #[derive(Debug, Default)]
    struct Hand(Mutex<MonoTime>);

    impl Hand {
        fn pass(&self, minutes: u64) {
            let mut now = self.0.lock().unwrap();
            *now = now.plus(Duration::from_mins(minutes));
        }
    }

    #[async_trait]
    impl Clock for Hand {
        fn now(&self) -> MonoTime {
            *self.0.lock().unwrap()
        }

        fn wall(&self) -> WallTime {
            WallTime(0)
        }

        async fn sleep(&self, _wait: Duration) {}
    }

    #[derive(Debug, Default)]
    struct Mint {
        made: AtomicU64,
        down: AtomicBool,
        asked: Notify,
    }

    #[async_trait]
    impl TokenSource for Mint {
        async fn make(&self) -> Result<Token, String> {
            let down = self.down.load(Ordering::SeqCst);
            let number = self.made.fetch_add(1, Ordering::SeqCst) + 1;
            self.asked.notify_one();
            if down {
                return Err("the exchange is down".to_owned());
            }
            Ok(Token {
                secret: format!("token {number}"),
                good_for: Duration::from_mins(14),
                renew_after: Duration::from_mins(10),
            })
        }
    }

    fn stage() -> (Arc<Mint>, Arc<Hand>, Arc<Tokens>) {
        let (mint, hand) = (Arc::<Mint>::default(), Arc::<Hand>::default());
        let tokens = Tokens::new(mint.clone(), hand.clone(), Duration::from_secs(5));
        (mint, hand, Arc::new(tokens))
    }

    #[tokio::test]
    async fn another_token_is_made_early_and_beside_the_calls() {
        let (mint, hand, tokens) = stage();
        assert_eq!(tokens.age(), None);
        assert_eq!(tokens.secret().await.unwrap(), "token 1");
        mint.asked.notified().await;
        hand.pass(9);
        assert_eq!(tokens.secret().await.unwrap(), "token 1");
        assert_eq!(tokens.age(), Some(Duration::from_mins(9)));
        hand.pass(1);
        assert_eq!(tokens.secret().await.unwrap(), "token 1", "without a wait");
        mint.asked.notified().await;
        while tokens.age() != Some(Duration::ZERO) {
            tokio::task::yield_now().await;
        }
        assert_eq!(tokens.secret().await.unwrap(), "token 2");
    }

    #[tokio::test]
    async fn an_old_token_is_kept_while_it_is_good_and_no_longer() {
        let (mint, hand, tokens) = stage();
        assert_eq!(tokens.secret().await.unwrap(), "token 1");
        mint.asked.notified().await;
        mint.down.store(true, Ordering::SeqCst);
        hand.pass(11);
        assert_eq!(tokens.secret().await.unwrap(), "token 1");
        mint.asked.notified().await;
        while tokens.renewing.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        assert_eq!(tokens.secret().await.unwrap(), "token 1");
        assert_eq!(mint.made.load(Ordering::SeqCst), 2, "not asked each time");
        hand.pass(3);
        let why = tokens.secret().await.unwrap_err();
        assert!(why.contains("is down"), "{why}");
        assert!(!format!("{tokens:?}").contains("token 1"));
    }
}
