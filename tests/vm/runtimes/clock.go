// Answers each line with what its clocks show, in JSON: nanoseconds of the wall clock, and of the monotonic one
// since the start.
package main

import (
	"bufio"
	"fmt"
	"os"
	"time"
)

func main() {
	start := time.Now()
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		now := time.Now()
		fmt.Printf("[%d,%d]\n", now.UnixNano(), now.Sub(start).Nanoseconds())
	}
}
