// Command tlogcheck checks a tlog-tiles log with the Merkle code of golang.org/x/mod/sumdb/tlog.
//
//	tlogcheck log LOG POLICY [SIZE:ROOT]           the checkpoint against the policy, every entry and every tile;
//	                                               SIZE:ROOT is an earlier tree that the log must contain
//	tlogcheck prove LOG POLICY INDEX PROOF ENTRY   writes the entry to ENTRY and its c2sp.org/tlog-proof to PROOF
//	tlogcheck proof PROOF POLICY ENTRY             checks a c2sp.org/tlog-proof of the entry in the file ENTRY
//	tlogcheck add-checkpoint LOG POLICY OLD        prints the c2sp.org/tlog-witness request to grow from size OLD
//
// LOG is a folder or an http URL; POLICY a file of the c2sp.org/tlog-policy format; ROOT is in base64.
// Exit status: 0 sound, 1 not sound (the last line of stderr says why), 2 wrongly called.
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"
)

func main() {
	args := os.Args[1:]
	if len(args) < 4 && !(len(args) == 3 && args[0] == "log") {
		misused("see the comment at the head of cmd/tlogcheck/main.go")
	}
	text, err := os.ReadFile(args[2])
	called(err)
	policy, err := torchwood.ParsePolicy(text)
	called(err)
	if args[0] == "proof" {
		checkProof(args[1], policy, args[3])
		return
	}
	l := open(args[1], policy)
	switch {
	case args[0] == "log":
		l.check()
		if len(args) == 4 {
			l.checkContains(remembered(args[3]))
		}
		fmt.Println("tlogcheck: OK", l.checkpoint.Origin, l.checkpoint.N, l.checkpoint.Hash)
	case args[0] == "prove" && len(args) == 6:
		l.prove(number(args[3]), args[4], args[5])
	case args[0] == "add-checkpoint":
		l.printAddCheckpoint(number(args[3]))
	default:
		misused("unknown: " + strings.Join(args, " "))
	}
}

// logged is a log whose checkpoint satisfies the policy.
type logged struct {
	ctx        context.Context
	tiles      torchwood.TileReader
	signed     []byte
	checkpoint torchwood.Checkpoint
}

func open(where string, policy torchwood.Policy) logged {
	l := logged{ctx: context.Background()}
	var err error
	if strings.HasPrefix(where, "http") {
		l.tiles, err = torchwood.NewTileFetcher(where)
	} else {
		l.tiles, err = torchwood.NewTileFS(os.DirFS(where))
	}
	called(err)
	l.signed, err = l.tiles.ReadEndpoint(l.ctx, "checkpoint")
	demand(err)
	l.checkpoint, _, err = torchwood.VerifyCheckpoint(l.signed, policy)
	demand(err)
	return l
}

// hashes checks each tile that it reads against the checkpoint.
func (l logged) hashes() tlog.HashReader {
	return torchwood.TileHashReaderWithContext(l.ctx, l.checkpoint.Tree, l.tiles)
}

func (l logged) client() *torchwood.Client {
	client, err := torchwood.NewClient(l.tiles)
	called(err)
	return client
}

// check reads every entry, and with it every tile.
func (l logged) check() {
	client, read := l.client(), int64(0)
	for range client.AllEntries(l.ctx, l.checkpoint.Tree, 0) {
		read++
	}
	demand(client.Err())
	if read != l.checkpoint.N {
		demand(fmt.Errorf("%d entries read of %d", read, l.checkpoint.N))
	}
}

func (l logged) checkContains(old tlog.Tree) {
	if old.N > l.checkpoint.N {
		demand(fmt.Errorf("rollback: size %d, remembered %d", l.checkpoint.N, old.N))
	}
	proof, err := tlog.ProveTree(l.checkpoint.N, old.N, l.hashes())
	demand(err)
	demand(tlog.CheckTree(proof, l.checkpoint.N, l.checkpoint.Hash, old.N, old.Hash))
}

func (l logged) prove(index int64, proofFile, entryFile string) {
	entry, proof, err := l.client().Entry(l.ctx, l.checkpoint.Tree, index)
	demand(err)
	called(os.WriteFile(entryFile, entry, 0o600))
	called(os.WriteFile(proofFile, torchwood.FormatProof(index, proof, l.signed), 0o600))
}

func (l logged) printAddCheckpoint(old int64) {
	var proof tlog.TreeProof
	if old > 0 && old < l.checkpoint.N {
		var err error
		proof, err = tlog.ProveTree(l.checkpoint.N, old, l.hashes())
		demand(err)
	}
	fmt.Printf("old %d\n", old)
	for _, hash := range proof {
		fmt.Println(hash)
	}
	fmt.Printf("\n%s", l.signed)
}

func checkProof(proofFile string, policy torchwood.Policy, entryFile string) {
	proof, err := os.ReadFile(proofFile)
	called(err)
	entry, err := os.ReadFile(entryFile)
	called(err)
	demand(torchwood.VerifyProof(policy, tlog.RecordHash(entry), proof))
	fmt.Println("tlogcheck: OK")
}

func remembered(arg string) tlog.Tree {
	size, root, _ := strings.Cut(arg, ":")
	hash, err := tlog.ParseHash(root)
	called(err)
	return tlog.Tree{N: number(size), Hash: hash}
}

func number(arg string) int64 {
	n, err := strconv.ParseInt(arg, 10, 64)
	called(err)
	return n
}

// demand ends the program when the log, or the proof, is not sound.
func demand(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "tlogcheck: FAIL:", err)
		os.Exit(1)
	}
}

// called ends the program when the fault is the caller's.
func called(err error) {
	if err != nil {
		misused(err.Error())
	}
}

func misused(why string) {
	fmt.Fprintln(os.Stderr, "tlogcheck:", why)
	os.Exit(2)
}
