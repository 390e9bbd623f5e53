// vcsim runs govmomi's own simulator over TLS until its standard input ends.
//
// It is the simulator package as it stands, with the inventory that a referee needs: it prints one
// line of JSON with its address, and stops when whoever started it goes away.
package main

import (
	"crypto/tls"
	"encoding/json"
	"flag"
	"io"
	"log"
	"net/url"
	"os"

	"github.com/vmware/govmomi/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator" // tags, over REST
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address and port")
	esx := flag.Bool("esx", false, "a single host instead of a vCenter")
	machines := flag.Int("machines", 2, "virtual machines in each resource pool")
	user := flag.String("user", "user", "who may log in")
	password := flag.String("password", "pass", "with which password")
	flag.Parse()

	model := simulator.VPX()
	if *esx {
		model = simulator.ESX()
	}
	model.Machine = *machines
	defer model.Remove()
	if err := model.Create(); err != nil {
		log.Fatal(err)
	}
	model.Service.RegisterEndpoints = true
	model.Service.TLS = new(tls.Config)
	model.Service.Listen = &url.URL{Host: *listen, User: url.UserPassword(*user, *password)}
	server := model.Service.NewServer()
	defer server.Close()
	ready := map[string]string{"address": server.URL.Host, "version": model.ServiceContent.About.Version}
	if err := json.NewEncoder(os.Stdout).Encode(ready); err != nil {
		log.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
}
