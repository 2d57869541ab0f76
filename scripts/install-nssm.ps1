<#
.SYNOPSIS
    Installs the gpu_monitor agent as the Windows service GPU-Monitor, run by NSSM.
.DESCRIPTION
    Does what `gpu_monitor service install` does on Windows, for those who like to read it first.
    Needs nssm.exe on PATH (nssm.cc, or: choco install nssm) and a PowerShell started as administrator.
    The service runs as LocalService: the program and its Python must stand where everybody may read,
    not in a user's own folder. Running this again changes an installed service.
.PARAMETER Program
    The installed program; default: gpu_monitor as PATH finds it.
.PARAMETER Config
    A configuration file; default: %ProgramData%\gpu_monitor\config.json, if it is there.
.PARAMETER Uninstall
    Stop and remove the service. Its data stay in %ProgramData%\gpu_monitor.
.EXAMPLE
    .\scripts\install-nssm.ps1 -Program C:\gpu_monitor\Scripts\gpu_monitor.exe
#>
#Requires -RunAsAdministrator
param(
    [string]$Program = "",
    [string]$Config = "",
    [switch]$Uninstall
)
$ErrorActionPreference = "Stop"
$service = "GPU-Monitor"
$state = Join-Path $env:ProgramData "gpu_monitor"
$logs = Join-Path $state "logs"

if (-not (Get-Command nssm -ErrorAction SilentlyContinue)) {
    throw "NSSM is not on PATH: install it from nssm.cc (or: choco install nssm), then run this again."
}

function Invoke-Nssm {
    & nssm @args
    if ($LASTEXITCODE -ne 0) { throw "nssm $args failed with exit code $LASTEXITCODE" }
}

$installed = [bool](Get-Service -Name $service -ErrorAction SilentlyContinue)
if ($Uninstall) {
    if ($installed) {
        & nssm stop $service
        Invoke-Nssm remove $service confirm
    }
    Write-Output "removed $service; kept $state"
    exit 0
}

if (-not $Program) {
    $found = Get-Command gpu_monitor -ErrorAction SilentlyContinue
    if (-not $found) { throw "gpu_monitor is not on PATH: name it with -Program" }
    $Program = $found.Source
}
if (-not (Test-Path $Program)) { throw "there is no program $Program" }
if ($Config -and -not (Test-Path $Config)) { throw "there is no configuration file $Config" }

New-Item -ItemType Directory -Force -Path $state, $logs | Out-Null
& icacls $state /grant "*S-1-5-19:(OI)(CI)M" | Out-Null
if ($LASTEXITCODE -ne 0) { throw "icacls could not let LocalService write to $state" }

if ($installed) {
    & nssm stop $service
    Invoke-Nssm set $service Application $Program
} else {
    Invoke-Nssm install $service $Program
}
$parameters = if ($Config) { "--config `"$((Resolve-Path $Config).Path)`"" } else { "" }
$console = Join-Path $logs "console.log"
Invoke-Nssm set $service AppParameters $parameters
Invoke-Nssm set $service AppDirectory $state
Invoke-Nssm set $service AppStdout $console
Invoke-Nssm set $service AppStderr $console

Invoke-Nssm set $service DisplayName "GPU Monitor"
Invoke-Nssm set $service Description "Flight recorder and ledger of the GPUs of this machine."
Invoke-Nssm set $service Start SERVICE_DELAYED_AUTO_START
Invoke-Nssm set $service ObjectName "NT AUTHORITY\LocalService"
Invoke-Nssm set $service AppPriority BELOW_NORMAL_PRIORITY_CLASS
Invoke-Nssm set $service AppNoConsole 0
# The console's output is appended to, and rotated at 10 MB while the service runs.
Invoke-Nssm set $service AppStdoutCreationDisposition 4
Invoke-Nssm set $service AppStderrCreationDisposition 4
Invoke-Nssm set $service AppRotateFiles 1
Invoke-Nssm set $service AppRotateOnline 1
Invoke-Nssm set $service AppRotateBytes 10485760
# Stopping: Ctrl-C and 5 s, in which the agent commits everything and ends.
Invoke-Nssm set $service AppStopMethodConsole 5000
Invoke-Nssm set $service AppStopMethodWindow 1000
Invoke-Nssm set $service AppStopMethodThreads 1000
# It is started again whatever happened, except after exit code 78: a bad configuration stays bad.
Invoke-Nssm set $service AppExit Default Restart
Invoke-Nssm set $service AppExit 78 Exit
Invoke-Nssm set $service AppRestartDelay 10000

Invoke-Nssm start $service
Write-Output "$service runs; store and log: $state"
