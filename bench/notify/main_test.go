package main

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/medicalink/postroom/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testenv.Main(m), testenv.IgnorePools()) }
