package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"io"
	"log"
	"net"

	"github.com/gorilla/websocket"
	"github.com/rancher/remotedialer"
)

// Instead of a server: what its tunnel is measured with.
var (
	sink     = flag.String("sink", "", "address where all that connections send is read")
	source   = flag.String("source", "", "address where every connection is sent -size bytes")
	stall    = flag.String("stall", "", "address where nothing is read of connections; with -sink")
	size     = flag.Int64("size", 0, "bytes from -source")
	agent    = flag.String("agent", "", "URL of a server: k3s's own end of a tunnel to it")
	identity = flag.String("identity", "", "file with certificate and key of -agent")
	roots    = flag.String("roots", "", "file with the CAs that -agent believes")
)

type zeros struct{}

func (zeros) Read(piece []byte) (int, error) {
	clear(piece)
	return len(piece), nil
}

// accept does its work on every connection to an address.
func accept(address string, work func(net.Conn)) {
	listener := must(net.Listen("tcp", address))
	for {
		conn := must(listener.Accept())
		go func() {
			defer conn.Close()
			work(conn)
		}()
	}
}

// bench is true when it has done what was asked for instead of a server.
func bench() bool {
	if *source != "" {
		go accept(*source, func(conn net.Conn) { io.Copy(conn, io.LimitReader(zeros{}, *size)) })
	}
	if *stall != "" {
		go accept(*stall, func(net.Conn) { select {} })
	}
	if *sink != "" {
		accept(*sink, func(conn net.Conn) {
			piece := make([]byte, 1<<18)
			for {
				if _, err := conn.Read(piece); err != nil {
					return
				}
			}
		})
	}
	if *agent == "" {
		return false
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(read(*roots))
	pair := must(tls.LoadX509KeyPair(*identity, *identity))
	dialer := &websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}}
	all := func(string, string) bool { return true }
	log.Fatal(remotedialer.ConnectToProxy(context.Background(), *agent, nil, all, dialer, nil))
	return true
}
