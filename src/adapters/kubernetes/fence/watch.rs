//! The wait for the end of a StatefulSet's pods.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use super::proof::{Before, Doubt, End, PodEnd, PodSeen, Proof, Word, judge_pod, judge_set};
use super::{Standing, StatefulSetFence};
use crate::adapters::kubernetes::object::{Object, compare_versions};
use crate::adapters::kubernetes::{ClusterError, Version};
use crate::engine::units::as_millis;
use crate::ports::Still;

/// The wait for the end of a StatefulSet's pods. What was once seen counts: a pod that ended does not
/// start again under its uid.
#[derive(Debug)]
pub struct Watch<'f> {
    fence: &'f StatefulSetFence,
    cluster: String,
    version: String,
    cut: Version,
    holder: Option<String>,
    /// Every pod that was seen, by uid, and the version after which a status of it is new.
    known: BTreeMap<String, (PodSeen, String)>,
    /// What a kubelet said, before it was seen to report.
    words: BTreeMap<String, Word>,
    ended: BTreeMap<String, PodEnd>,
}

impl<'f> Watch<'f> {
    pub(super) fn new(
        fence: &'f StatefulSetFence,
        (before, cut, holder): (&Before, &Version, Option<&str>),
        words: BTreeMap<String, Word>,
    ) -> Self {
        let known = before.pods.iter();
        let known = known.map(|pod| (pod.uid.clone(), (pod.clone(), before.version.clone())));
        Self {
            fence,
            cluster: before.cluster.clone(),
            version: before.version.clone(),
            cut: cut.clone(),
            holder: holder.map(ToOwned::to_owned),
            known: known.collect(),
            words,
            ended: BTreeMap::new(),
        }
    }
}

impl Watch<'_> {
    /// Scales the StatefulSet to zero, and looks meanwhile: an answer that is lost must not cost the last
    /// word of a pod. Otherwise as [`StatefulSetFence::scale_down`].
    pub async fn scale_down(
        &mut self,
        before: &Before,
        still: Still<'_>,
    ) -> Result<Version, ClusterError> {
        let fence = self.fence;
        let mut scaling = std::pin::pin!(fence.scale_down(before, still));
        let cut = loop {
            let look = async {
                drop(self.look().await);
                fence.clock.sleep(fence.settings.poll).await;
            };
            tokio::select! {
                done = &mut scaling => break done?,
                () = look => {}
            }
        };
        self.cut = cut.clone();
        Ok(cut)
    }

    /// Looks until it is proven, cannot be proven any more, or the time is over: the last look's answer.
    /// A look that fails is followed by another one; the error is the answer only if it is the last.
    pub async fn wait(&mut self, within: Duration) -> Result<Standing, ClusterError> {
        let until = self.fence.clock.now().plus(within);
        loop {
            let look = self.look().await;
            let over = match &look {
                Ok(Standing::Fenced(_)) | Err(ClusterError::OtherCluster { .. }) => true,
                Ok(Standing::Doubted(doubts)) => doubts.iter().any(|doubt| self.is_final(doubt)),
                Err(_) => false,
            };
            let left = self.fence.clock.now().until(until);
            if over || left.is_zero() {
                return look;
            }
            let pause = self.fence.settings.poll.min(left);
            self.fence.clock.sleep(pause).await;
        }
    }

    /// Looks once.
    pub async fn look(&mut self) -> Result<Standing, ClusterError> {
        if let Some(doubt) = self.hopeless() {
            return Ok(Standing::Doubted(vec![doubt]));
        }
        let cluster = self.fence.cluster.identify().await?;
        if cluster != self.cluster {
            return Err(ClusterError::OtherCluster {
                expected: self.cluster.clone(),
                found: cluster,
            });
        }
        let set = match self.fence.cluster.get(&self.fence.set).await {
            Ok(set) => set,
            Err(ClusterError::Absent(_)) => {
                return Ok(Standing::Doubted(vec![Doubt::Replaced { found: None }]));
            }
            Err(error) => return Err(error),
        };
        let listed = self.fence.pods(&set).await?;
        let order = compare_versions(&listed.version, &self.version);
        if order.is_none_or(Ordering::is_lt) {
            return Ok(Standing::Doubted(vec![Doubt::WentBack {
                kept: self.version.clone(),
                found: listed.version,
            }]));
        }
        for pod in &listed.items {
            let uid = pod.text("/metadata/uid").unwrap_or_default();
            if !self.known.contains_key(uid) {
                let seen = self.fence.seen(pod, false).await?;
                self.known
                    .insert(uid.to_owned(), (seen, self.version.clone()));
            }
        }
        // Before the set itself is judged: a last word may be there and gone before it is at zero for us.
        let doubts = self.judge(&listed.items).await?;
        Ok(match judge_set(&self.cut, Some(&set)) {
            Err(doubt) => Standing::Doubted(vec![doubt]),
            Ok(_) if !doubts.is_empty() => Standing::Doubted(doubts),
            Ok(set) => Standing::Fenced(Proof {
                cluster: self.cluster.clone(),
                set,
                pods: self.ended.values().cloned().collect(),
            }),
        })
    }

    /// Whether waiting cannot help. The cloud may still say that a vanished pod's machine is gone.
    fn is_final(&self, doubt: &Doubt) -> bool {
        let asks = self.fence.machines.is_some();
        doubt.is_final() && !(asks && matches!(doubt, Doubt::Vanished { .. }))
    }

    /// What no look can mend.
    fn hopeless(&self) -> Option<Doubt> {
        if self.known.is_empty() {
            return Some(Doubt::NoPod);
        }
        let holder = self.holder.as_ref()?;
        let there = self.known.contains_key(holder);
        (!there).then(|| Doubt::HolderGone {
            uid: holder.clone(),
        })
    }

    async fn judge(&mut self, pods: &[Object]) -> Result<Vec<Doubt>, ClusterError> {
        let mut doubts = Vec::new();
        let open = self.known.iter();
        let open: Vec<_> = open
            .filter(|(uid, _)| !self.ended.contains_key(*uid))
            .map(|(uid, (seen, since))| (uid.clone(), seen.clone(), since.clone()))
            .collect();
        for (uid, seen, since) in open {
            let is = |pod: &&Object| pod.text("/metadata/uid") == Some(uid.as_str());
            let judged = match self.words.get(&uid) {
                Some(word) => Ok(word.clone()),
                None => judge_pod(&seen, &since, pods.iter().find(is)),
            };
            let end = match judged {
                Ok(word) => {
                    self.words.insert(uid.clone(), word.clone());
                    self.fence.keep_words(&self.version, &self.words);
                    self.confirmed(&seen, word).await?
                }
                Err(doubt) => Err(doubt),
            };
            match end {
                Ok(end) => {
                    self.ended.insert(uid, end_of(&seen, end));
                }
                Err(doubt) => match self.fence.machine_is_gone(&seen).await? {
                    Some(machine) => {
                        let end = End::MachineGone { machine };
                        self.ended.insert(uid, end_of(&seen, end));
                    }
                    None => doubts.push(doubt),
                },
            }
        }
        Ok(doubts)
    }

    /// Whether the word is that of a kubelet that reports.
    async fn confirmed(
        &self,
        seen: &PodSeen,
        word: Word,
    ) -> Result<Result<End, Doubt>, ClusterError> {
        let node = seen.node.clone().unwrap_or_default();
        let age = if node.is_empty() {
            None
        } else {
            self.fence.observe_lease(&node).await?
        };
        let fresh = age.filter(|age| *age <= self.fence.settings.lease_fresh);
        Ok(match fresh {
            Some(age) => Ok(End::Kubelet {
                resource_version: word.resource_version,
                finished_at: word.finished_at,
                lease_age_ms: as_millis(age),
            }),
            None => Err(Doubt::LeaseOld {
                pod: seen.name.clone(),
                node,
                age_ms: age.map(as_millis),
            }),
        })
    }
}

fn end_of(seen: &PodSeen, end: End) -> PodEnd {
    PodEnd {
        name: seen.name.clone(),
        uid: seen.uid.clone(),
        end,
    }
}
