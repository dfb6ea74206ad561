// Asks a site for a page, on a new connection each time, with one cache of sessions.
package main

import (
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
)

func main() {
	port, version := os.Args[1], os.Args[2]
	connections, err := strconv.Atoi(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	number := map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}[version]
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{
			InsecureSkipVerify: true,
			MinVersion:         number,
			MaxVersion:         number,
			ClientSessionCache: tls.NewLRUClientSessionCache(0),
		},
	}}
	for i := 0; i < connections; i++ {
		answer, err := client.Get("https://localhost:" + port + "/")
		if err != nil {
			log.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, answer.Body); err != nil {
			log.Fatal(err)
		}
		answer.Body.Close()
	}
}
