// A stand-in for `k3s server`, for tests: the supervisor's endpoints as k3s's agents know them, the tunnel by
// k3s's own server side (rancher/remotedialer), a real API server behind, which reaches kubelets through the tunnel.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rancher/remotedialer"
)

var (
	dir      = flag.String("dir", "", "folder of this server: its CA, passwords, and the files that steer it")
	pki      = flag.String("pki", "", "folder of the control plane's CA (ca.*) and of front-proxy-client.*")
	listen   = flag.String("listen", "", "address of supervisor and API server")
	api      = flag.String("api", "", "URL of the API server behind")
	password = flag.String("password", "", "password of agents")
	bearer   = flag.String("bootstrap-token", "", "a bootstrap token")
	life     = flag.Duration("life", 24*time.Hour, "life of the certificates made")
)

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func read(name string) []byte { return must(os.ReadFile(name)) }

// steered says whether a file that steers this server exists.
func steered(name string) bool {
	_, err := os.Stat(filepath.Join(*dir, name))
	return err == nil
}

func load(base string) *authority {
	block := read(base + ".crt")
	der, _ := pem.Decode(block)
	cert := must(x509.ParseCertificate(der.Bytes))
	rest := read(base + ".key")
	for {
		var k *pem.Block
		k, rest = pem.Decode(rest)
		if k.Type == "EC PRIVATE KEY" {
			return &authority{cert, must(x509.ParseECPrivateKey(k.Bytes)), block}
		}
		if k.Type == "PRIVATE KEY" {
			return &authority{cert, must(x509.ParsePKCS8PrivateKey(k.Bytes)).(*ecdsa.PrivateKey), block}
		}
	}
}

func serial() *big.Int { return must(rand.Int(rand.Reader, big.NewInt(1<<62))) }

// serverCA is made once: a cluster's CA outlives its servers.
func serverCA() *authority {
	base := filepath.Join(*dir, "server-ca")
	if _, err := os.Stat(base + ".key"); err == nil {
		return load(base)
	}
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{CommonName: "k3s-server-ca@test"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(100 * time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	if err := os.WriteFile(base+".crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		log.Fatal(err)
	}
	k := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(key))})
	if err := os.WriteFile(base+".key", k, 0o600); err != nil {
		log.Fatal(err)
	}
	return load(base)
}

// issue makes a certificate for a public key: chain in PEM.
func (a *authority) issue(public any, subject pkix.Name, usage x509.ExtKeyUsage, names []string, ips []net.IP) []byte {
	template := &x509.Certificate{SerialNumber: serial(), Subject: subject, NotBefore: time.Now().Add(-time.Second),
		NotAfter: time.Now().Add(*life), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{usage}, DNSNames: names, IPAddresses: ips}
	der := must(x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key))
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), a.pem...)
}

type server struct {
	client, serving *authority
	tunnels         *remotedialer.Server
	lock            sync.Mutex
	nodes           map[string]*node
}

// node is what is known of an agent; it outlives the server, as k3s's Secrets do.
type node struct{ Password, IP string }

func (s *server) keep() {
	text := must(json.Marshal(s.nodes))
	if err := os.WriteFile(filepath.Join(*dir, "nodes.json"), text, 0o600); err != nil {
		log.Print(err)
	}
}

// forgotten says whether a request shows a certificate that was made before forget-certificates was.
func forgotten(r *http.Request) bool {
	file, err := os.Stat(filepath.Join(*dir, "forget-certificates"))
	return err == nil && r.TLS.PeerCertificates[0].NotBefore.Before(file.ModTime())
}

// nodeOf is the node whose certificate a request shows.
func nodeOf(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return ""
	}
	if forgotten(r) {
		return ""
	}
	subject := r.TLS.PeerCertificates[0].Subject
	for _, group := range subject.Organization {
		if group == "system:nodes" {
			return strings.TrimPrefix(subject.CommonName, "system:node:")
		}
	}
	return ""
}

func (s *server) known(r *http.Request) bool {
	if user, given, ok := r.BasicAuth(); ok {
		return (user == "node" || user == "server") && given == *password
	}
	if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		return *bearer != "" && token == *bearer
	}
	return nodeOf(r) != ""
}

func (s *server) certificate(w http.ResponseWriter, r *http.Request, client bool) {
	name, given := r.Header.Get("k3s-Node-Name"), r.Header.Get("k3s-Node-Password")
	if name == "" || given == "" {
		http.Error(w, "node name or password not set", http.StatusBadRequest)
		return
	}
	var ips []net.IP
	for _, ip := range strings.Split(r.Header.Get("k3s-Node-IP"), ",") {
		ips = append(ips, net.ParseIP(ip))
	}
	s.lock.Lock()
	if known := s.nodes[name]; known == nil {
		s.nodes[name] = &node{given, ips[0].String()}
		s.keep()
	} else if known.Password != given {
		s.lock.Unlock()
		http.Error(w, "Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match server node-passwd entry", http.StatusForbidden)
		return
	}
	s.lock.Unlock()
	body := must(io.ReadAll(r.Body))
	csr, err := x509.ParseCertificateRequest(body)
	var public any
	var keys []byte
	if err != nil || steered("legacy") {
		// as servers before 2025: a key of the server's
		key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		keys = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: must(x509.MarshalECPrivateKey(key))})
		public = key.Public()
	} else {
		public = csr.PublicKey
	}
	if client {
		subject := pkix.Name{CommonName: "system:node:" + name, Organization: []string{"system:nodes"}}
		w.Write(append(s.client.issue(public, subject, x509.ExtKeyUsageClientAuth, nil, nil), keys...))
		return
	}
	ips = append(ips, net.IPv4(127, 0, 0, 1))
	w.Write(append(s.serving.issue(public, pkix.Name{CommonName: name}, x509.ExtKeyUsageServerAuth, []string{name, "localhost"}, ips), keys...))
}

// front is the API server behind, told by headers who asks.
func (s *server) front() http.Handler {
	target := must(url.Parse(*api))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.client.pem)
	pair := must(tls.LoadX509KeyPair(filepath.Join(*pki, "front-proxy-client.crt"), filepath.Join(*pki, "front-proxy-client.key")))
	proxy := &httputil.ReverseProxy{FlushInterval: -1,
		Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			for _, header := range []string{"X-Remote-User", "X-Remote-Group"} {
				r.Out.Header.Del(header)
			}
			if len(r.In.TLS.VerifiedChains) > 0 {
				subject := r.In.TLS.PeerCertificates[0].Subject
				r.Out.Header.Set("X-Remote-User", subject.CommonName)
				for _, group := range subject.Organization {
					r.Out.Header.Add("X-Remote-Group", group)
				}
			}
		}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.VerifiedChains) > 0 && forgotten(r) {
			// as the API server says it
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			w.Write([]byte(`{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}`))
			return
		}
		proxy.ServeHTTP(w, r)
	})
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	text := func(path string, body func() []byte) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			if !s.known(r) {
				http.Error(w, "not authorized", http.StatusUnauthorized)
				return
			}
			w.Write(body())
		})
	}
	mux.HandleFunc("GET /cacerts", func(w http.ResponseWriter, _ *http.Request) {
		if steered("redirect") {
			w.Header().Set("Location", *api)
			w.WriteHeader(http.StatusFound)
			return
		}
		for steered("endless") {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
		w.Write(s.serving.pem)
	})
	mux.HandleFunc("GET /v1-k3s/readyz", func(w http.ResponseWriter, r *http.Request) {
		if steered("not-ready") {
			http.Error(w, "runtime core not ready", http.StatusServiceUnavailable)
			return
		}
		w.Write([]byte("ok"))
	})
	text("/v1-k3s/config", func() []byte { return read(filepath.Join(*dir, "config.json")) })
	text("/v1-k3s/client-ca.crt", func() []byte { return s.client.pem })
	text("/v1-k3s/server-ca.crt", func() []byte { return s.serving.pem })
	for path, client := range map[string]bool{"/v1-k3s/client-kubelet.crt": true, "/v1-k3s/serving-kubelet.crt": false} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if !s.known(r) {
				http.Error(w, "not authorized", http.StatusUnauthorized)
				return
			}
			s.certificate(w, r, client)
		})
	}
	front := s.front()
	mux.HandleFunc("GET /v1-k3s/apiservers", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case steered("legacy"):
			// to the API server, as all paths that are not known
			front.ServeHTTP(w, r)
		case !s.known(r):
			http.Error(w, "not authorized", http.StatusUnauthorized)
		default:
			w.Write(read(filepath.Join(*dir, "apiservers.json")))
		}
	})
	mux.Handle("/v1-k3s/connect", s.tunnels)
	mux.Handle("/", front)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1-k3s") || r.URL.Path == "/cacerts" {
			kind, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
			log.Printf("%s %s authorization=%q certificate=%q", r.Method, r.URL.Path, kind, nodeOf(r))
		}
		mux.ServeHTTP(w, r)
	})
}

// dial is how the API server gets out: to the kubelets of agents by their tunnels only, elsewhere directly.
func (s *server) dial(r *http.Request, address string) (net.Conn, error) {
	host, port, _ := net.SplitHostPort(address)
	s.lock.Lock()
	var name string
	for n, known := range s.nodes {
		if known.IP == host && port == "10250" {
			name = n
		}
	}
	s.lock.Unlock()
	if name == "" {
		return net.DialTimeout("tcp", address, 10*time.Second)
	}
	return s.tunnels.Dialer(name)(r.Context(), "tcp", "127.0.0.1:"+port)
}

func (s *server) egress(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		s.probe(w, r)
		return
	}
	out, err := s.dial(r, r.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	w.WriteHeader(http.StatusOK)
	in, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		log.Print(err)
		return
	}
	go func() { io.Copy(out, in); out.Close() }()
	io.Copy(in, out)
	in.Close()
}

// probe connects to ?target= of ?node= by its tunnel, sends ?send= bytes, and tells what came back, how much went out and
// how long it took: for tests of the tunnel itself.
func (s *server) probe(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	conn, err := s.tunnels.Dialer(query.Get("node"))(r.Context(), "tcp", query.Get("target"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer conn.Close()
	begin := time.Now()
	send, _ := strconv.ParseInt(query.Get("send"), 10, 64)
	seconds, _ := strconv.ParseFloat(query.Get("seconds"), 64)
	var sent int64
	var stop chan struct{}
	if send > 0 {
		stop = make(chan struct{})
	}
	go func() {
		piece := make([]byte, 32<<10)
		for sent < send {
			n, err := conn.Write(piece[:min(int64(len(piece)), send-sent)])
			sent += int64(n)
			if err != nil {
				break
			}
		}
		if stop != nil {
			close(stop)
		}
	}()
	received := make(chan string, 1)
	go func() {
		n, err := io.Copy(io.Discard, conn)
		received <- fmt.Sprintf("received=%d end=%v", n, err)
	}()
	select {
	case text := <-received:
		fmt.Fprintf(w, "%s sent=%d ms=%d\n", text, sent, time.Since(begin).Milliseconds())
	case <-stop:
		fmt.Fprintf(w, "whole sent=%d ms=%d\n", sent, time.Since(begin).Milliseconds())
	case <-time.After(time.Duration(seconds * float64(time.Second))):
		fmt.Fprintf(w, "open sent=%d ms=%d\n", sent, time.Since(begin).Milliseconds())
	}
}

func main() {
	flag.Parse()
	if bench() {
		return
	}
	s := &server{client: load(filepath.Join(*pki, "ca")), serving: serverCA(), nodes: map[string]*node{}}
	if text, err := os.ReadFile(filepath.Join(*dir, "nodes.json")); err == nil {
		if err := json.Unmarshal(text, &s.nodes); err != nil {
			log.Fatal(err)
		}
	}
	s.tunnels = remotedialer.New(func(r *http.Request) (string, bool, error) {
		name := nodeOf(r)
		return name, name != "", nil
	}, remotedialer.DefaultErrorWriter)
	socket := filepath.Join(*dir, "egress.sock")
	os.Remove(socket)
	outlet := must(net.Listen("unix", socket))
	go func() { log.Fatal(http.Serve(outlet, http.HandlerFunc(s.egress))) }()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	host, _, _ := net.SplitHostPort(*listen)
	full := *life
	*life = 24 * time.Hour
	chain := s.serving.issue(key.Public(), pkix.Name{CommonName: "k3s"}, x509.ExtKeyUsageServerAuth, []string{"localhost"}, []net.IP{net.ParseIP(host)})
	*life = full
	k := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: must(x509.MarshalECPrivateKey(key))})
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.client.pem)
	config := &tls.Config{Certificates: []tls.Certificate{must(tls.X509KeyPair(chain, k))}, ClientCAs: pool,
		ClientAuth: tls.VerifyClientCertIfGiven, NextProtos: []string{"h2", "http/1.1"}}
	web := &http.Server{Addr: *listen, Handler: s.routes(), TLSConfig: config}
	log.Fatal(web.ListenAndServeTLS("", ""))
}
