//! The kubelet API on :10250: TLS, authentication, logs, pods, healthz.
