//! The messages between agent and shim: JSON documents behind a little-endian `u32` length on a Unix socket.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::types::{ContainerSpec, ExitRecord, SandboxInfo};

/// Spoken version; both sides send it first. A shim outlives its agent, so changes must stay readable for old shims.
pub const VERSION: u32 = 1;
/// Largest accepted message; a container's environment is the bulk of the largest.
pub const MAX_FRAME: usize = 4 << 20;

/// What the agent sends.
#[derive(Debug, Serialize, Deserialize)]
pub enum ClientMessage {
    /// First message of a connection.
    Hello {
        /// [`VERSION`] of the agent.
        version: u32,
    },
    /// Asks for one thing; answered by [`ShimMessage::Response`] with the same id.
    Request {
        /// Chosen by the agent, unique on the connection.
        id: u64,
        /// What is asked.
        request: Request,
    },
    /// Makes the connection a stream session; descriptors come with the Hello before it. Answered by
    /// [`ShimMessage::Streaming`].
    Stream(StreamRequest),
    /// The attached standard input has ended (only on a stream session).
    CloseStdin,
}

/// A process whose standard streams the agent holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum StreamRequest {
    /// A new process in a running container. Without a terminal the Hello carries the wanted ends of pipes in the order
    /// standard input (to read), output, error (to write); with one the answer carries the terminal.
    Exec {
        /// Container id.
        container: String,
        /// Command line.
        args: Vec<String>,
        /// With a terminal.
        tty: bool,
        /// The process is killed when the session's connection ends before it.
        #[serde(default)]
        bound: bool,
        /// Which streams are wanted.
        wanted: Wanted,
    },
    /// The container's own process. The Hello carries the wanted ends of pipes for output and error (to write); the
    /// answer carries the terminal, or the pipe to its standard input when that is wanted and open.
    Attach {
        /// Container id.
        container: String,
        /// Which streams are wanted.
        wanted: Wanted,
    },
}

/// Which standard streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

/// What can be asked of a shim.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Create a container, stopped before its program.
    Create {
        /// What it is made from.
        spec: Box<ContainerSpec>,
    },
    /// Let a created container's program run.
    Start {
        /// Container id.
        container: String,
    },
    /// Send a signal.
    Kill {
        /// Container id.
        container: String,
        /// Signal number.
        signal: i32,
        /// To every process of the container.
        all: bool,
    },
    /// Kill if needed, then remove state and cgroup.
    Remove {
        /// Container id.
        container: String,
    },
    /// The state of the sandbox and its containers.
    Info,
    /// Kill and remove all containers, then end.
    Shutdown,
}

/// What the shim sends.
#[derive(Debug, Serialize, Deserialize)]
pub enum ShimMessage {
    /// First message of a connection.
    Hello {
        /// [`VERSION`] of the shim.
        version: u32,
    },
    /// The answer to a request.
    Response {
        /// Id of the request.
        id: u64,
        /// The reply, or an error's text.
        result: Result<Reply, String>,
    },
    /// A container's process ended.
    Exited {
        /// Container id.
        container: String,
        /// How.
        exit: ExitRecord,
    },
    /// The answer to [`ClientMessage::Stream`].
    Streaming {
        /// An error's text when nothing runs.
        result: Result<(), String>,
    },
    /// The process of a stream session has ended.
    Ended {
        /// Exit code; 128 + signal for a killed process.
        code: i32,
    },
}

/// Successful answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Nothing to tell.
    Done,
    /// To [`Request::Create`]: the process id on the host.
    Pid(i32),
    /// To [`Request::Start`]: nanoseconds since the epoch.
    StartedAt(i64),
    /// To [`Request::Info`].
    Info(Box<SandboxInfo>),
}

/// Frames one message.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, String> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).map_err(|e| format!("writing a message: {e}"))?;
    let length = frame.len() - 4;
    if length > MAX_FRAME {
        return Err(format!("message of {length} bytes is larger than the limit of {MAX_FRAME}"));
    }
    let prefix = u32::try_from(length).map_err(|e| format!("message length: {e}"))?.to_le_bytes();
    frame[..4].copy_from_slice(&prefix);
    Ok(frame)
}

/// Frames the answer to a request, whatever it says: of containers that say too much, command line and environment are
/// left out, which are in their `info.json`; any other answer that is too long becomes an error.
pub fn respond(id: u64, result: Result<Reply, String>) -> Result<Vec<u8>, String> {
    let mut message = ShimMessage::Response { id, result };
    let error = match encode(&message) {
        Ok(frame) => return Ok(frame),
        Err(error) => error,
    };
    if let ShimMessage::Response { result: Ok(Reply::Info(info)), .. } = &mut message {
        for container in &mut info.containers {
            container.spec.args.clear();
            container.spec.env.clear();
        }
        if let Ok(frame) = encode(&message) {
            return Ok(frame);
        }
    }
    encode(&ShimMessage::Response { id, result: Err(error) })
}

/// Takes the first whole message from the front of `buffer`; `None` when more bytes are needed.
pub fn decode<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> Result<Option<T>, String> {
    let Some(prefix) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*prefix) as usize;
    if length > MAX_FRAME {
        return Err(format!("message of {length} bytes is larger than the limit of {MAX_FRAME}"));
    }
    let Some(body) = buffer.get(4..4 + length) else { return Ok(None) };
    let message = serde_json::from_slice(body).map_err(|e| format!("reading a message: {e}"))?;
    buffer.drain(..4 + length);
    if buffer.is_empty() {
        buffer.shrink_to(4096);
    }
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::super::types::{ContainerInfo, SandboxSpec};
    use super::*;

    #[test]
    fn frames_survive_being_cut_anywhere() {
        let frame = encode(&ClientMessage::Hello { version: 7 }).unwrap();
        for cut in 0..frame.len() {
            let mut buffer = frame[..cut].to_vec();
            assert!(decode::<ClientMessage>(&mut buffer).unwrap().is_none());
        }
        let mut two = [frame.clone(), frame].concat();
        for _ in 0..2 {
            let message = decode::<ClientMessage>(&mut two).unwrap();
            assert!(matches!(message, Some(ClientMessage::Hello { version: 7 })));
        }
        assert!(two.is_empty());
    }

    #[test]
    fn an_answer_is_never_too_long() {
        let container = |env: usize, labels: usize| ContainerInfo {
            spec: ContainerSpec {
                args: vec!["sh".into()],
                env: vec![("A".into(), "b".repeat(env))],
                labels: [("l".into(), "m".repeat(labels))].into(),
                ..ContainerSpec::default()
            },
            pid: 1,
            started_at: None,
            created_at: 1,
            exit: None,
        };
        let answer = |containers: Vec<ContainerInfo>| {
            let info = SandboxInfo { spec: SandboxSpec::default(), alive: true, created_at: 1, containers };
            let frame = respond(7, Ok(Reply::Info(Box::new(info)))).unwrap();
            assert!(frame.len() <= MAX_FRAME + 4);
            match decode(&mut frame.clone()).unwrap() {
                Some(ShimMessage::Response { id: 7, result }) => result,
                other => panic!("{other:?}"),
            }
        };
        let args = |answer: Result<Reply, String>| match answer {
            Ok(Reply::Info(info)) => info.containers.iter().map(|c| c.spec.args.len()).sum::<usize>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(args(answer(vec![container(8, 0), container(8, 0)])), 2);
        assert_eq!(args(answer(vec![container(MAX_FRAME / 2, 0), container(MAX_FRAME / 2, 0)])), 0);
        assert!(answer(vec![container(0, MAX_FRAME)]).unwrap_err().contains("larger than the limit"));
    }

    #[test]
    fn oversized_frames_are_refused() {
        let mut buffer = u32::MAX.to_le_bytes().to_vec();
        assert!(decode::<ClientMessage>(&mut buffer).is_err());
    }

    /// A container as the first version wrote it: what came later is not there.
    fn first_version() -> serde_json::Value {
        serde_json::json!({
            "id": "c", "name": "c", "attempt": 0, "rootfs": "/r", "args": ["sh"], "env": [["A", "b"]], "cwd": "/",
            "user": {"uid": 0, "gid": 0, "additional_gids": []}, "read_only_rootfs": false, "privileged": false,
            "mounts": [{"source": "/a", "destination": "/b", "read_only": true}], "no_new_privileges": false,
            "capabilities_add": [], "capabilities_drop": [], "oom_score_adj": 0, "log_path": "/l", "tty": false,
            "resources": {"cpu_shares": 2, "cpu_quota": null, "cpu_period": null, "memory_limit": null, "pids_limit": null},
            "stdin": false, "stdin_once": false, "termination_log": null, "labels": {}
        })
    }

    #[test]
    fn shims_and_agents_of_other_versions_are_understood() {
        // an older agent, or a record an older shim has left
        let older = serde_json::json!({"Request": {"id": 1, "request": {"Create": {"spec": first_version()}}}});
        assert!(serde_json::from_value::<ClientMessage>(older).is_ok());
        let sandbox = serde_json::json!({"id": "s", "pod_uid": "u", "pod_name": "p", "pod_namespace": "n", "attempt": 0,
            "hostname": null, "host_network": false, "host_ipc": false, "host_pid": false,
            "share_process_namespace": false, "cgroup": "pod", "resources": first_version()["resources"]});
        let container =
            serde_json::json!({"spec": first_version(), "pid": 1, "started_at": 1, "created_at": 1, "exit": null});
        let info = serde_json::json!({"spec": sandbox, "alive": true, "created_at": 1, "containers": [container]});
        let answer = serde_json::json!({"Response": {"id": 1, "result": {"Ok": {"Info": info}}}});
        assert!(serde_json::from_value::<ShimMessage>(answer).is_ok());
        // a newer one says more than is understood
        let mut newer = first_version();
        newer["of_a_later_version"] = serde_json::json!({"a": [1]});
        let newer = serde_json::json!({"Request": {"id": 1, "request": {"Create": {"spec": newer}}, "more": 1}});
        assert!(serde_json::from_value::<ClientMessage>(newer).is_ok());
    }
}
