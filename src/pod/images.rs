//! Images of a pod's containers and image volumes: pull policy, pulls, and their backoff.

use std::path::Path;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::PodExt;
use super::create::Refused;
use super::ephemeral::all_containers;
use super::message::{Message, Pulled};
use super::times::in_words;
use super::worker::Worker;
use crate::image::{Image, ImageError, Needs, Use};
use crate::{metrics, volume};

fn not_present(name: &str) -> Refused {
    ("ErrImageNeverPull", format!("Container image {name:?} is not present with pull policy of Never"))
}

impl Worker {
    /// Containers whose image was changed in the spec are started again from the new one, whatever held them back.
    pub(super) fn replace_images(&mut self, before: &Pod) {
        let pod = self.pod.clone();
        for container in super::containers(&pod) {
            let old = super::containers(before).find(|c| c.name == container.name);
            if old.is_none_or(|old| old.image == container.image) {
                continue;
            }
            let state = self.state(&container.name);
            state.crash.reset();
            state.pull.reset();
            state.pull_error = None;
            if self.run_of(container).is_some() {
                let why = format!("Container {} definition changed, will be restarted", container.name);
                self.start_anew(container, why);
            }
        }
    }

    pub(super) fn image_backoff(&mut self, container: &Container) {
        let state = self.state(&container.name);
        let Some((image, error)) = state.pull_error.clone() else { return };
        if state.pull.pending(Instant::now()).is_none() {
            return;
        }
        let message = format!("Back-off pulling image {image:?}: ErrImagePull: {error}");
        if state.wait("ImagePullBackOff", message) {
            self.event(Some(container), "Normal", "BackOff", format!("Back-off pulling image {image:?}"));
        }
    }

    /// The image of a container's next run, once all it needs is there: its image volumes are mounted too.
    /// `None` while a pull is under way.
    pub(super) async fn image(&mut self, container: &Container) -> Result<Option<Image>, Refused> {
        let name = container.image.clone().unwrap_or_default();
        let policy = container.image_pull_policy.as_deref();
        let Some(image) = self.present(container, &name, policy, Use::Run).await? else {
            return Ok(None);
        };
        let pod = self.pod.clone();
        for source in pod.pod_spec().iter().flat_map(|s| s.volumes.iter().flatten()) {
            let Some(wanted) = &source.image else { continue };
            let place = self.volumes.as_ref().and_then(|v| v.get(&source.name)?.parent().map(Path::to_owned));
            let Some(place) = place.filter(|place| !volume::is_mounted(&place.join("rootfs"))) else { continue };
            let reference = wanted.reference.clone().unwrap_or_default();
            let policy = wanted.pull_policy.as_deref();
            let Some(image) = self.present(container, &reference, policy, Use::Read).await? else {
                return Ok(None);
            };
            let mounted = self.shared.images.mount_for(&image, &place, self.users().as_ref()).await;
            mounted.map_err(|e| ("CreateContainerError", format!("volume {:?}: {e}", source.name)))?;
        }
        Ok(Some(image))
    }

    /// Whether nothing is to be pulled before the container's next run.
    pub(super) async fn has_image(&self, container: &Container) -> bool {
        let name = container.image.as_deref().unwrap_or_default();
        let fresh = self.pulled_fresh.iter().any(|(c, i)| *c == container.name && i == name);
        let always = container.image_pull_policy.as_deref() == Some("Always");
        fresh || !always && self.shared.images.get(name).await.is_ok_and(|found| found.is_some())
    }

    /// An image by its pull policy; `None` while a pull is under way.
    async fn present(
        &mut self,
        container: &Container,
        name: &str,
        policy: Option<&str>,
        wanted: Use,
    ) -> Result<Option<Image>, Refused> {
        let present = match self.shared.images.get(name).await {
            Ok(present) => present,
            Err(ImageError::InvalidName { message, .. }) => {
                return Err(("InvalidImageName", format!("Failed to apply default image tag {name:?}: {message}")));
            }
            Err(error) => return Err(("ImageInspectError", error.to_string())),
        };
        let policy = policy.unwrap_or("IfNotPresent");
        let fresh = self.pulled_fresh.iter().any(|(c, i)| *c == container.name && i == name);
        match (present, policy) {
            (Some(image), _) if fresh => Ok(Some(image)),
            (Some(image), "Never" | "IfNotPresent") if self.may_use(&image, name).await => {
                let message =
                    format!("Container image {name:?} already present on machine and can be accessed by the pod");
                self.event(Some(container), "Normal", "Pulled", message);
                Ok(Some(image))
            }
            // that it is here is not for who cannot pull it
            (Some(_), "Never") => Err(not_present(name)),
            (None, "Never") if !self.shared.images.is_importing() => Err(not_present(name)),
            _ => {
                self.pull(container, name.to_owned(), policy, wanted).await;
                Ok(None)
            }
        }
    }

    /// Whether the pod could have pulled an image that is here, as the kubelet asks it.
    async fn may_use(&self, image: &Image, name: &str) -> bool {
        match self.shared.images.needs(image, name) {
            Needs::Nothing => true,
            Needs::Pull => false,
            Needs::Login => {
                let credentials = super::pull_secret::credentials(&self.pod, &*self.shared.objects).await;
                self.shared.images.granted(image, name, &credentials)
            }
        }
    }

    async fn pull(&mut self, container: &Container, image: String, policy: &str, wanted: Use) {
        if self.shared.images.is_importing() && policy != "Always" {
            self.await_import(container);
            return;
        }
        self.event(Some(container), "Normal", "Pulling", format!("Pulling image {image:?}"));
        self.state(&container.name).pulling = true;
        self.timing.pull();
        let credentials = super::pull_secret::credentials(&self.pod, &*self.shared.objects).await;
        let (images, tx, name) = (self.shared.images.clone(), self.tx.clone(), container.name.clone());
        tokio::spawn(async move {
            let began = Instant::now();
            let result = metrics::runtime("pull_image", images.pull_for(&image, &credentials, wanted)).await;
            let took = began.elapsed();
            let doubt = match &result {
                Ok(pulled) if wanted == Use::Run => images.doubt(pulled).await,
                _ => None,
            };
            // a worker that is gone no longer cares
            tx.send(Message::Pulled(Box::new(Pulled { container: name, image, result, took, doubt })));
        });
    }

    /// The image may be in an archive that is being imported: then it is there without a pull, else it is asked for again.
    fn await_import(&mut self, container: &Container) {
        self.state(&container.name).pulling = true;
        let (images, tx, name) = (self.shared.images.clone(), self.tx.clone(), container.name.clone());
        tokio::spawn(async move {
            images.imported().await;
            tx.send(Message::Imported { container: name });
        });
    }

    /// Takes the end of the import.
    pub(super) fn imported(&mut self, name: &str) {
        self.state(name).pulling = false;
    }

    /// Takes the end of a pull.
    pub(super) fn pulled(&mut self, pulled: Pulled) {
        let Pulled { container: name, image, result, took, doubt } = pulled;
        let name = name.as_str();
        self.timing.pulled();
        let pod = self.pod.clone();
        let Some(container) = all_containers(&pod).find(|c| c.name == name) else { return };
        let state = self.state(name);
        state.pulling = false;
        match result {
            Ok(Image { size, .. }) => {
                state.pull.reset();
                state.pull_error = None;
                // what it waited for others is in it: a pull begins where others have not ended
                let took = in_words(took);
                let message = format!(
                    "Successfully pulled image {image:?} in {took} ({took} including waiting). Image size: {size} bytes."
                );
                self.event(Some(&container), "Normal", "Pulled", message);
                if let Some(doubt) = doubt {
                    self.event(Some(&container), "Warning", "ImageMayFail", doubt);
                }
                self.pulled_fresh.push((name.to_owned(), image));
            }
            Err(error) => {
                let message = error.to_string();
                state.pull.fail(Instant::now());
                state.pull_error = Some((image, message.clone()));
                state.wait("ErrImagePull", message.clone());
                // by these words people look for it
                let told =
                    message.strip_prefix("failed to pull image").map(|rest| format!("Failed to pull image{rest}"));
                self.event(Some(&container), "Warning", "Failed", told.unwrap_or(message));
                self.event(Some(&container), "Warning", "Failed", "Error: ErrImagePull".to_owned());
                self.publish();
            }
        }
    }
}
