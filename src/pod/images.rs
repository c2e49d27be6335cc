//! Images of a pod's containers: pull policy, pulls, and their backoff.

use std::time::Instant;

use k8s_openapi::api::core::v1::Container;

use super::create::Refused;
use super::ephemeral::all_containers;
use super::worker::{Message, Worker};
use crate::image::{Image, ImageError};

impl Worker {
    pub(super) fn image_backoff(&mut self, container: &Container) {
        let image = container.image.clone().unwrap_or_default();
        let state = self.state(&container.name);
        let Some(error) = state.pull_error.clone() else { return };
        if state.pull.pending(Instant::now()).is_none() {
            return;
        }
        let message = format!("Back-off pulling image {image:?}: ErrImagePull: {error}");
        if state.wait("ImagePullBackOff", message) {
            self.event(Some(container), "Normal", "BackOff", format!("Back-off pulling image {image:?}"));
        }
    }

    /// The container's image by its pull policy; `None` while a pull is under way.
    pub(super) async fn image(&mut self, container: &Container) -> Result<Option<Image>, Refused> {
        let name = container.image.clone().unwrap_or_default();
        let policy = container.image_pull_policy.clone().unwrap_or_else(|| "IfNotPresent".to_owned());
        let present = match self.shared.images.get(&name).await {
            Ok(present) => present,
            Err(ImageError::InvalidName { message, .. }) => {
                return Err(("InvalidImageName", format!("Failed to apply default image tag {name:?}: {message}")));
            }
            Err(error) => return Err(("ImageInspectError", error.to_string())),
        };
        let fresh = self
            .pulled_fresh
            .iter()
            .position(|n| *n == container.name)
            .map(|i| self.pulled_fresh.swap_remove(i))
            .is_some();
        match (present, policy.as_str()) {
            (Some(image), "Never" | "IfNotPresent") => Ok(Some(image)),
            (Some(image), _) if fresh => Ok(Some(image)),
            (None, "Never") if !self.shared.images.is_importing() => {
                Err(("ErrImageNeverPull", format!("Container image {name:?} is not present with pull policy of Never")))
            }
            _ => {
                self.pull(container, name, &policy).await;
                Ok(None)
            }
        }
    }

    async fn pull(&mut self, container: &Container, image: String, policy: &str) {
        if self.shared.images.is_importing() && policy != "Always" {
            self.await_import(container);
            return;
        }
        self.event(Some(container), "Normal", "Pulling", format!("Pulling image {image:?}"));
        self.state(&container.name).pulling = true;
        let credentials = super::pull_secret::credentials(&self.pod, &*self.shared.objects).await;
        let (images, tx, name) = (self.shared.images.clone(), self.tx.clone(), container.name.clone());
        tokio::spawn(async move {
            let result = images.pull(&image, &credentials).await;
            // a worker that is gone no longer cares
            let _ = tx.send(Message::Pulled { container: name, result }).await;
        });
    }

    /// The image may be in an archive that is being imported: then it is there without a pull, else it is asked for again.
    fn await_import(&mut self, container: &Container) {
        self.state(&container.name).pulling = true;
        let (images, tx, name) = (self.shared.images.clone(), self.tx.clone(), container.name.clone());
        tokio::spawn(async move {
            images.imported().await;
            let _ = tx.send(Message::Imported { container: name }).await;
        });
    }

    /// Takes the end of the import.
    pub(super) fn imported(&mut self, name: &str) {
        self.state(name).pulling = false;
    }

    /// Takes the end of a pull.
    pub(super) fn pulled(&mut self, name: &str, result: Result<Image, ImageError>) {
        let pod = self.pod.clone();
        let Some(container) = all_containers(&pod).find(|c| c.name == name) else { return };
        let image = container.image.clone().unwrap_or_default();
        let state = self.state(name);
        state.pulling = false;
        match result {
            Ok(_) => {
                state.pull.reset();
                state.pull_error = None;
                self.pulled_fresh.push(name.to_owned());
                self.event(Some(&container), "Normal", "Pulled", format!("Successfully pulled image {image:?}"));
            }
            Err(error) => {
                let message = error.to_string();
                state.pull.fail(Instant::now());
                state.pull_error = Some(message.clone());
                state.wait("ErrImagePull", message.clone());
                self.event(Some(&container), "Warning", "Failed", message);
                self.event(Some(&container), "Warning", "Failed", "Error: ErrImagePull".to_owned());
                self.publish();
            }
        }
    }
}
