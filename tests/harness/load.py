"""Clients that follow the endpoints of a Service and count what fails.

    load.py KUBECONFIG SERVICE STOP-FILE

Four clients ask ready endpoints for /healthz until STOP-FILE is there; prints `ASKED FAILED VERSIONS`, the last being the
answers seen. Run in a network namespace with routes to the pods.
"""

import pathlib
import random
import sys
import threading
import time
import urllib.request

from kubernetes import client, config, watch  # Debian: python3-kubernetes


class Endpoints:
    """Addresses that are ready, kept by a watch."""

    def __init__(self, api, service):
        self.slices, self.api, self.service = {}, api, service
        threading.Thread(target=self.follow, daemon=True).start()

    def follow(self):
        label = f"kubernetes.io/service-name={self.service}"
        for event in watch.Watch().stream(self.api.list_namespaced_endpoint_slice, "default", label_selector=label):
            found = event["object"]
            ready = [e.addresses[0] for e in found.endpoints or [] if e.conditions.ready]
            self.slices[found.metadata.name] = [] if event["type"] == "DELETED" else ready

    def all(self):
        return [address for ready in list(self.slices.values()) for address in ready]


def main():
    kubeconfig, service, stop = sys.argv[1:4]
    config.load_kube_config(kubeconfig)
    endpoints = Endpoints(client.DiscoveryV1Api(), service)
    asked, failed, seen = [0] * 4, [], set()
    over = pathlib.Path(stop)

    def ask(number):
        while not over.exists():
            addresses = endpoints.all()
            if not addresses:
                time.sleep(0.05)
                continue
            address = random.choice(addresses)
            try:
                seen.add(urllib.request.urlopen(f"http://{address}:8080/healthz", timeout=5).read().decode().strip())
            except OSError as error:
                failed.append(f"{address}: {error}")
            asked[number] += 1
            time.sleep(0.01)

    clients = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    for error in failed[:10]:
        print(error, file=sys.stderr)
    print(sum(asked), len(failed), ",".join(sorted(seen)))


main()
