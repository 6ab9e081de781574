//! Kubernetes clusters, on an API server of ours. The contract is held against a real one, too, where
//! `KUBECONFIG_TEST` names a kubeconfig file: in a namespace of its own, which is deleted at the end.

mod access;
pub(crate) mod calls;
mod contract;
mod fence;
mod operator;
mod rig;
mod site;
mod workloads;
